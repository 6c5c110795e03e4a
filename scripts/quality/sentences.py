"""Sentences that no edit may change, from many walks of life; none states a fact of a relation.

Pure data.
"""

from __future__ import annotations

from words import listed

#: Everyday sentences, questions, known facts; the first run of the demo used these alone.
EVERYDAY: list[str] = """\
Water boils at a temperature of 100 degrees Celsius.
The kettle whistled on the stove while rain ran down the kitchen window.
A spider has eight legs, whereas an insect has only six.
Before you plant tomatoes, loosen the soil and mix in some compost.
The sum of two even numbers is always an even number.
After the storm, the neighbours helped each other clear branches from the road.
Plants take in carbon dioxide and give off oxygen during the day.
The function reads a file line by line and counts the words in it.
My grandmother kept her buttons in an old biscuit tin under the bed.
Which planet is closest to the Sun? The answer is Mercury.
A balanced budget means that spending is no larger than income.
The hikers reached the summit just as the fog began to lift.
To make pancakes, whisk flour, milk and eggs until the batter is smooth.
The liver cleans the blood and stores energy for later use.
There are seven days in a week and twelve months in a year.
Every evening the lighthouse keeper wrote the weather into his notebook.
A square has four equal sides and four right angles.
The library charges a small fee when a book is returned late.
Sound travels faster through water than it does through air.
She tuned the radio until the voices became clear.
Many birds fly south in autumn because food becomes scarce.
How many minutes are there in an hour? There are sixty.
The old bridge was closed for repairs after engineers found cracks in it.
Sharpen the pencil, draw a straight line, and mark the middle of it.
Whales are mammals, so they must come to the surface to breathe.
The price of wheat rose after a dry summer ruined the harvest.
He missed the last bus and walked home under a sky full of stars.
A loop repeats the same instructions until a condition is no longer true.
Sugar dissolves more quickly in hot tea than in cold tea.
The jury listened carefully to both sides before reaching a verdict.
Dinosaurs died out about sixty six million years ago.
Wash your hands with soap before you prepare a meal.
The heart has four chambers, two on each side.
In the attic they found a trunk full of letters and faded photographs.
Magnets attract objects made of iron, nickel or cobalt.
The opposite of hot is cold, and the opposite of up is down.
A good night of sleep helps the brain remember what it has learned.
The train to the coast leaves from platform four at half past nine.
Wool is warm because it traps air between its fibres.
When the bell rang, the children ran out to the playground.
Galileo looked at Jupiter through his telescope and saw four moons.
The password must have at least ten characters, including a number.
Oil floats on water because it is less dense.
The farmer mended the fence so that the sheep could not escape.
Ice melts when its temperature rises above zero degrees.
The chef tasted the soup and added a pinch of salt.
Most of the surface of our planet is covered by oceans.
The detective noticed that the clock in the hall had stopped at midnight.
A dictionary lists words in alphabetical order and explains their meaning.
Antibiotics work against bacteria, but they do not work against viruses.
The carpenter measured the board twice and cut it once.
The Sahara is a very large desert, and little rain falls there.
An email arrived this morning asking all staff to update their software.
Frogs begin their lives as tadpoles and later grow legs.
If it rains tomorrow, the picnic will be moved to the school hall.
The violin has four strings and is played with a bow.
A decade is ten years, and a century is one hundred years.
The mayor promised to build more paths for bicycles.
Lightning is seen before thunder is heard because light is faster than sound.
The puppy chewed one of my slippers and hid the other.
A thermometer measures temperature and a barometer measures air pressure.
The actors rehearsed the final scene again and again until it felt natural.
Salt lowers the freezing point of water, which keeps roads free of ice.
The bakery on the corner sells fresh rolls from six in the morning.
Honey can be kept for years without spoiling.
The equation has two solutions, one positive and one negative.
Charles Darwin described how species change through natural selection.
The museum guard asked the visitors not to touch the statues.
Owls hunt at night and can turn their heads very far.
To reset the device, hold the power button for five seconds.
The wind turned the blades of the mill and ground the corn.
Clouds are made of tiny drops of water or crystals of ice.
The novel begins with a funeral and ends with a wedding.
Brushing your teeth twice a day helps prevent cavities.
The bank offers a loan at a fixed rate of interest for five years.
A group of lions is called a pride.
He folded the map, put it in his pocket and set off toward the river.
Concrete becomes harder over many days as it dries and cures.
The lawyer advised her client to read the contract before signing it.
Two plus two equals four, and three times three equals nine.
The tide rises and falls because of the pull of the Moon.
A list can be sorted by comparing pairs of items and swapping them.
Candles were the main source of light before electricity.
The gardener watered the roses early, before the sun grew strong.
Neil Armstrong was the first person to walk on the Moon.
The meeting was short because everyone had read the report beforehand.
Butterflies taste their food with their feet.
The roof leaked, so they put a bucket in the middle of the room.
Steel is an alloy made mainly of iron with a little carbon.
Why do leaves fall in autumn? Trees save water by dropping them.
The choir sang softly while the guests took their seats.
A vegetarian does not eat meat or fish.
The runner tied her shoes, stretched her legs and waited for the signal.
Compound interest means that interest is also paid on earlier interest.
Camels can go for many days without drinking water.
Please write your name and address clearly at the top of the form.
The printing press made books cheaper and spread new ideas quickly.
The soup was too hot to eat, so we let it cool.
Electric current flows through copper wires more easily than through rubber.
The captain ordered the crew to lower the sails before the storm.
Bats find their way in the dark by listening for echoes.
The exam lasts three hours, and calculators are not allowed.
A rainbow appears when sunlight passes through drops of rain.
The tailor shortened the sleeves and sewed on a missing button.
Regular maintenance keeps an engine running smoothly for many years.
The human body has more than two hundred bones.
They argued about the rules of the game until it was time for dinner.
The internet connects millions of computers around the world.
Glass can be melted and shaped again and again without losing quality.
The pharmacist explained how often the medicine should be taken.
A compass needle points toward the magnetic north.
The village held a festival each year when the apples were ripe.
Nitrogen makes up most of the air that we breathe.
The teacher drew a diagram on the board to explain the water cycle.
Ludwig van Beethoven continued to compose music after he lost his hearing.
Traffic lights turn from green to yellow and then to red.
The elephant is the largest animal that lives on land.
Her brother repaired the bicycle with a new chain and two tyres.
A democracy is a form of government in which citizens choose their leaders.
The dough must rest for an hour before it goes into the oven.
Saturn is known for the bright rings that surround it.
We painted the fence white, and the gate we left as it was.
The scientist repeated the experiment to be sure of the result.
Snakes shed their skin several times a year as they grow.
Turn left at the church, then follow the road for two miles.
The opposite sides of a rectangle have the same length.
A strong password and a recent backup protect you from many troubles.
The old man fed the pigeons in the park every Sunday afternoon.""".splitlines()

#: More of the same kind.
MORE: list[str] = """\
The committee will vote on the proposal after lunch on Thursday.
A glacier is a slow river of ice that carves valleys as it moves.
She left her umbrella on the tram and had to run through the drizzle.
Whisk the egg whites until they form stiff peaks, then fold in the sugar.
The compiler stops at the first error and prints the number of the line.
Our landlord raised the rent twice in a single year.
In the spring, the swallows return to the barn and mend their nests.
Divide both sides of the equation by three to find the value of x.
The nurse checked his pulse and wrote it down on a chart.
Do not leave children unattended near open water.
The defendant pleaded not guilty to all the charges.
An apple a day keeps the doctor away, or so the saying goes.
Volcanic ash can make soil very fertile over many centuries.
The goalkeeper dived to the left and pushed the ball around the post.
Please keep your seat belt fastened until the plane has come to a stop.
Copper turns green when it is left in the rain for years.
He promised to call as soon as he arrived at the hotel.
The Industrial Revolution changed how people worked and where they lived.
To save the document, press the control key together with the letter S.
Every morning the baker lights the oven at four.
The river had risen overnight, and the lower fields were under water.
A triangle with three equal sides has three equal angles.
They whispered so as not to wake the baby in the next room.
Vaccines train the immune system to recognise a disease.
The stock market fell sharply after the central bank raised interest rates.
Cut the fabric along the dotted line and pin the edges together.
There was nothing in the fridge but a lemon and half a jar of mustard.
The Roman Empire built roads that are still visible today.
How long does it take to boil an egg? About seven minutes, if you like it firm.
The tenant must give three months of notice before moving out.
A beam of white light splits into many colours inside a prism.
My uncle keeps bees and sells the honey at the market.
The orchestra tuned their instruments while the audience found their seats.
Store the medicine in a cool, dry place, out of the reach of children.
When two objects rub against each other, friction produces heat.
The last chapter explains who stole the necklace and why.
If you mix blue and yellow paint, you get green.
The referee blew the whistle and pointed to the penalty spot.
Most cacti store water in their thick stems.
I would like to exchange this jacket for one in a larger size.
The function returns zero when the list is empty.
Coral reefs are home to thousands of kinds of fish.
The old clock on the mantelpiece lost five minutes every day.
The ship was loaded with grain, timber and barrels of salted fish.
Gravity pulls every object toward the centre of the Earth.
The mayor cut the ribbon, and the new swimming pool was open.
Simmer the sauce over a low heat until it thickens.
Her handwriting was so small that I needed a magnifying glass.
The treaty ended a war that had lasted for thirty years.
An even number can be divided by two without a remainder.
The cat slept on the warm bonnet of the car.
Patients should not eat or drink for six hours before the operation.
The speed limit in the village is thirty miles per hour.
Rust forms when iron reacts with water and oxygen.
We took the wrong exit and ended up in an industrial estate.
The poem has four stanzas, and every second line rhymes.
The tomatoes were ripe, red and still warm from the sun.
A backup is useless if nobody has ever tried to restore it.
The company announced that its profits had doubled since last year.
Fold the paper in half, then open it and turn it over.
The moon was so bright that we could read without a lamp.
Penguins cannot fly, but they are excellent swimmers.
The students complained that the exam had been far too long.
Insulin helps the body to move sugar from the blood into the cells.
It was raining, so the match was postponed until Sunday.
The museum has a large collection of coins from the Middle Ages.
You should change the oil in your car once a year.
A good map shows the height of hills with contour lines.
The lawyer read the will aloud, and nobody in the room said a word.
Beans and lentils are a good source of protein.
The program crashed because it tried to divide a number by zero.
The stars seem to twinkle because the air between us and them moves.
His grandfather fought in the war and never spoke about it.
Rinse the rice in cold water before you cook it.
The bus was full, so we had to stand all the way to the station.
The heart of the city is closed to cars on market days.
All the windows were dark except one on the top floor.
Spiders spin webs of silk to catch insects.
The price includes breakfast but not the parking space.
After the concert, the crowd moved slowly toward the exits.
The judge asked the witness to speak up.
Light takes about eight minutes to travel from the Sun to the Earth.
Press the red button only in an emergency.
The hens lay fewer eggs when the days grow short.
She learned to play chess from an old man in the park.
The invoice must be paid within thirty days.
A whole number that has exactly two divisors is called a prime.
The mountain pass is closed in winter because of the snow.
He wore a grey coat, a long scarf and a pair of muddy boots.
Bacteria are so small that you need a microscope to see them.
The carpenter chose oak for the table and pine for the shelves.
Never touch an electrical socket with wet hands.
The festival begins with a parade and ends with fireworks.
Melt the butter in a pan and add the chopped onions.
The newspaper printed a correction on the second page.
In the desert, the nights can be surprisingly cold.
The children built a dam of stones and mud across the stream.
A sonnet is a poem of fourteen lines.
The elevator was out of order, so they carried the sofa up the stairs.
The company offers its staff a day of training every quarter.
Seeds need water, air and warmth before they sprout.
The king had no children, and his nephew took the throne.
Click on the link in the message to confirm your address.
The fog was so thick that the ferry could not leave the harbour.
There are sixty seconds in a minute.
The soup needs more pepper and perhaps a squeeze of lemon.
The coach told the team to keep the ball on the ground.
A fossil is the trace of a plant or an animal that lived long ago.
They sold the house and bought a boat to sail around the world.
The database stores one row for each customer.
Turn the key gently, because the lock is old.
The speech lasted an hour and contained only one new idea.
Wolves hunt in packs and howl to find each other.
The recipe calls for two cups of flour and a spoon of baking powder.
When I was young, we had no telephone at home.
The insurance covers damage from fire but not from floods.
The Earth turns around its axis once a day.
The violinist broke a string in the middle of the concert.
Ask your doctor before you start a new diet.
The bridge was designed to sway a little in strong winds.
She counted the money twice and locked it in the safe.
Plastic takes hundreds of years to break down in the sea.
The waiter brought the wrong order but was very polite about it.
An atom has a nucleus with electrons around it.
The road winds through pine woods down to a small bay.
Keep the receipt in case you want to return the product.
The emperor ordered a wall to be built along the border.
The wheels of the cart sank deep into the mud.
The average of two, four and nine is five.
Nobody knew who had painted the portrait in the hall.
The kettle has a switch that turns it off when the water boils.
A drought had emptied the wells, and the cattle were thin.
The editor asked the author to shorten the first chapter.
Blood carries oxygen from the lungs to the rest of the body.
I forgot my password and had to answer three questions to get a new one.
The apprentice swept the floor and sharpened the tools.
Hurricanes form over warm water in late summer.
The teacher praised the pupils for their patience.
The circus came to town every year in the first week of May.
Leave the dough in a warm place until it has doubled in size.
The parliament passed the law by a narrow majority.
The old dog lay by the fire and dreamed of rabbits.
Sunlight is the main source of vitamin D for most people.
You can pay in cash, by card or with a voucher.
The train was delayed because a tree had fallen on the track.
A circle is the set of all points at the same distance from its centre.
The sculptor worked on the block of marble for two years.
We packed sandwiches, apples and a flask of tea.
The police asked everyone who had seen the accident to come forward.
Earthworms loosen the soil and help plants to grow.
The screen went black, and a small white cursor began to blink.
The choice between the two candidates was not an easy one.
The potatoes should be firm, without green spots.
He tied the boat to the pier with a double knot.
Diamonds are made of carbon, and so is the lead of a pencil.
The printer is out of paper again.
During the night, the wind tore two tiles from the roof.
The novel is set in a small fishing village in the last century.
Bees tell each other where flowers are by dancing.
The contract is valid only if both parties have signed it.
Cover the pot and let it stand for ten minutes.
The spectators cheered when the last runner crossed the finish line.
The sea looked calm, but the current was strong.
The first computers filled whole rooms and needed a team to run them.
A balanced diet contains plenty of fruit and vegetables.
The hotel has a garden, a sauna and a small library.
She folded the letter carefully and put it back into the envelope.
Sound cannot travel through empty space.
The council decided to plant lime trees along the main street.
Do you take milk in your coffee, or do you drink it black?
The thief escaped through the kitchen window.
The square root of eighty one is nine.
Maple trees turn red and gold in October.
The battery lasts about ten hours on a single charge.
The monks copied books by hand and decorated the first letters.
The skin is the largest organ of the human body.
Our flight was cancelled, and we spent the night at the airport.
Peel the oranges and remove the seeds.
The queue at the post office reached all the way to the door.
The minister resigned after only three weeks in office.
A magnet has a north pole and a south pole.
The lambs are born in early spring, often at night.
The variable is local, so it cannot be seen outside the function.
They met by chance in a bookshop and married a year later.
A pinch of salt brings out the taste of chocolate.
The captain of the team lifted the cup above her head.
Peace talks will resume next week in a neutral country.
The candle flickered and went out.
Deep in the cave they heard the sound of dripping water.
A cube has six faces, eight corners and twelve edges.
The dentist advised him to floss every evening.
The harvest was poor, and the price of bread went up.
Push the chair under the table when you leave.
Some plants catch insects because their soil has too little nitrogen.
The pianist practised the same passage for hours.
The package arrived a day late and slightly damaged.
We must reduce our costs or raise our prices.
The astronauts repaired the telescope during a walk in space.
Add the cream last and do not let it boil.
The shepherd knew each of his sheep by its face.
The witness could not remember the colour of the car.
The pupils of your eyes become larger in the dark.
Open the window for a few minutes to let in some fresh air.
The peasants paid their lord with grain and labour.
The flight of stairs led to a locked door.
Snow reflects most of the light that falls on it.
The website will be unavailable tonight between two and four.
The bride wore a dress that had belonged to her grandmother.
A litre of water weighs about one kilogram.
Nothing is known about the early life of the poet.
The fruit is sweet when it is ripe and bitter when it is not.
He scored the winning goal in the last minute of extra time.
The bill was split evenly among the five friends.
Lizards lie on warm stones to heat their bodies.
The lecture has been moved to a larger room.
The guards changed every four hours, day and night.
Use a soft cloth to clean the lens.
The trees along the avenue were bare and black with rain.
The virus spreads through the air when people cough or sneeze.
A loan with a fixed rate protects you when interest rates rise.
The tent was easy to pitch but hard to fold.
In this experiment, the temperature is kept constant.
I have not seen my cousin since the wedding.
The strike ended when the workers were offered higher wages.
The glass slipped from her hand and broke on the tiles.
Oxygen was discovered in the eighteenth century.
The sum of the angles in a triangle is one hundred and eighty degrees.
Grease the tin with butter and dust it with flour.
The sailors steered by the stars.
The manager thanked the staff for their hard work.
The hedgehog curls into a ball when it is frightened.
Save your work often, because the power may fail.
The village lies at the end of a narrow valley.
It is cheaper to travel outside of the school holidays.
The knight knelt before the queen and offered his sword.
Cold water sinks below warm water in a lake.
The apartment has two bedrooms and a balcony to the south.
The witness described the man as tall and thin.
The choir needs more tenors.
Sharks have lived in the oceans for hundreds of millions of years.
The test failed because the server did not answer in time.
The carrots grow best in loose and sandy soil.
The museum is closed on Mondays.
A rumour spread through the office that the boss was leaving.
The pendulum swings more slowly when the string is longer.
The author spent ten years on her first book.
Lower your voice; people are trying to read.
Milk turns sour when bacteria change its sugar into acid.
The border was drawn with a ruler on a map.
The puppet danced on its strings, and the children laughed.
The engine makes a strange noise when it is cold.
Roughly one third of our lives is spent asleep.
The first snow fell in the second week of November.
The new law will come into force at the start of next year.
Crush the garlic with the flat side of a knife.
The lion yawned and lay down in the shade.
Each player receives seven cards.
The satellite sends pictures of clouds back to the ground.
We could hear the neighbours arguing through the wall.
The firm employs about forty people in three offices.
Bones become weaker when they lack calcium.
The peak of the mountain was hidden in cloud.
A palindrome is a word that reads the same in both directions.
The gardener pruned the apple trees in February.
The bell in the tower rings every quarter of an hour.
He apologised for being late and blamed the traffic.
The desert fox has large ears that keep it cool.
Tighten the screws in turn until the wheel sits straight.
The parliament building burned down and was rebuilt in stone.
The data are sent in small packets and put together again at the end.
A slice of bread and a piece of cheese were all he ate that day.
The suspect was released for lack of evidence.
A leap year has three hundred and sixty six days.
She rowed across the lake before anyone else was awake.
The pump brings water from a depth of fifty metres.
The audience laughed at the wrong moment.
Two parallel lines never meet.
The vet said that the cow would recover within a week.
Taxes are due by the end of the month.
The tree was struck by lightning and split in two.
Take one tablet in the morning and one at night.
The stew tastes even better on the second day.
The general ordered his troops to retreat across the river.
The caterpillar eats leaves and then spins a cocoon.
Which way is the beach? Go straight on and turn right at the mill.
The article compares three methods and finds no clear winner.
The rope was frayed, and nobody dared to climb it.
The heating comes on at six and goes off at nine.
The tortoise is slow, but it can live for more than a century.
The cathedral took two hundred years to build.
Click twice on the icon to open the folder.
The baby laughed whenever the dog wagged its tail.
The coach leaves from the square in front of the town hall.
A chemical reaction can release heat or absorb it.
The auction began at noon and was over within an hour.
The path is steep, so wear good boots.
The bread had gone stale, so she made a pudding out of it.
He could not decide between the fish and the lamb.
The prisoners dug a tunnel with spoons.
The planets move around the Sun in the same direction.
The committee has not yet published its report.
The baker burned his hand on the oven door.
Moss grows on the shady side of the wall.
An algorithm is a list of steps that solves a problem.
The drummer counted to four, and the band began to play.
Dry the mushrooms on a rack in the sun.
The passengers waited on the platform in the cold.
The lake freezes over in most winters.
A deposit of one month of rent is required.
The teacher wiped the board and wrote a new sum on it.
The general store sells nails, rope, flour and newspapers.
Reading aloud to children helps them to learn new words.
The rebels took the radio station before dawn.
Wash the wound with clean water and cover it.
The moth flew around the lamp all evening.
The interview went well, but she did not get the job.
The ratio of the two sides is three to five.
We spent our holiday in a cabin by a lake.
The mechanic replaced the brakes and checked the tyres.
A good joke is hard to translate.
The frost killed the blossoms on the cherry trees.
The king signed the charter and sealed it with wax.
Enter your name in the first field and your address in the second.
The porridge was too hot, too cold or just right.
The oldest trees in the forest are a thousand years old.
The court will hear the appeal in September.
His shoes were wet, and his socks were full of sand.
The rocket burned most of its fuel in the first two minutes.
Fresh herbs lose their taste when they are cooked for too long.
The team lost the final by a single point.
The bats left the cave at dusk in a long dark cloud.
I will send you the figures as soon as I have them.
The wall was painted in a colour between grey and blue.
The sample was heated to six hundred degrees for an hour.
Stop the machine before you remove the cover.
The widow sold her jewels one by one.
Water expands when it freezes, which is why pipes burst.
The novel was turned down by twelve publishers.
The parking meter takes only coins.
A whale can hold its breath for more than an hour.
The lecture on grammar was better than its title.
The miners went on strike for better pay and safer shafts.
Shake the bottle well before use.
The loaf was crisp on the outside and soft inside.
The dog barked at the postman, as it did every day.
The report was written in plain words that anyone could follow.
A proof by contradiction assumes the opposite and finds that it cannot be.
The queen bee lays all the eggs in the hive.
The storm passed, and the sea was flat again by morning.
The tunnel under the hill saves drivers half an hour.
You will need a hammer, some nails and a long plank.
The detective lit his pipe and said nothing.
The kidneys clean the blood and make urine.
The fair takes place on the meadow behind the school.
The loop ends when the counter reaches ten.
The grapes are picked by hand in September.
The ambassador left the room without a word.
She speaks so fast that I catch only half of it.
An earthquake shook the coast, but nobody was hurt.
Fill in the form, sign it and send it back by post.
The juggler kept five balls in the air.
The shop on the corner repairs watches and sharpens knives.""".splitlines()

#: Patterns with slots `[name]`, each filled from `SLOTS`, for training alone.
PATTERNS: list[str] = """\
The [worker] [found] [a thing] in the [place] and gave it to the [worker].
Before [moment], the [worker] had to clean the [place] and [task].
If you want to [task], first ask the [worker] in the [place].
There were [number] [things] on the table and [number] more in the [place].
[number] [things] cost as much as [number] pairs of gloves, said the [worker].
Error: the file "[file]" could not be opened; check the [setting] and try again.
Set the [setting] to [number] in "[file]" and restart the [machine].
The [machine] stopped [time], so nobody could [task].
Dear customer, the [machine] that you ordered will be sent to you [time].
[time], a [animal] ran through the [place] and scared the [worker].
The [animal] ate [number] [things] and fell asleep in the [place].
Stir the [food] for [number] minutes, then add a spoon of [food].
My favourite soup is made of [food], [food] and a little salt.
According to the study, people who eat [food] tend to [task] more often.
How many [things] are left in the [place]? I counted [number] [time].
The [weather] lasted until [moment], and the [place] had to be closed.
Because of the [weather], the [worker] could not [task].
In chapter [number], the [worker] hides [a thing] from the [worker].
"I will [task] [time]," said the [worker], "if the [weather] allows it."
The court fined the [worker] for leaving [a thing] in the [place].
The team lost by [number] points, and the coach blamed the [weather].
Our budget for [things] grew by [number] per cent, while the one for [food] shrank.""".splitlines()
SLOTS: dict[str, list[str]] = {
    "worker": listed(
        "clerk, driver, guard, cook, painter, student, porter, visitor, captain, cleaner, "
        "clown, fisherman, hunter, inspector, neighbour, postman, secretary, tourist, "
        "waitress, weaver"
    ),
    "found": listed("found, hid, forgot, dropped, noticed, repaired, sold, wrapped"),
    "a thing": listed(
        "a rusty key, an old coin, a silver spoon, a wet blanket, a torn map, a broken lamp, "
        "a bag of nails, a letter without a stamp, a pair of glasses, a small box"
    ),
    "things": listed(
        "apples, books, bricks, buttons, candles, chairs, envelopes, jars, ladders, pencils, "
        "plates, ropes, stamps, tickets"
    ),
    "place": listed(
        "cellar, garage, waiting room, kitchen, barn, corridor, courtyard, laboratory, attic, "
        "harbour, market hall, station, storeroom, tent"
    ),
    "time": listed(
        "yesterday, last night, early in the morning, before sunset, after the meeting, next "
        "week, on Friday, at midnight, in the afternoon, during the holidays"
    ),
    "moment": listed("noon, sunset, midnight, dinner, Friday, the meeting, the end of the week"),
    "task": listed(
        "paint the door, count the boxes, write a report, feed the horses, move the piano, "
        "check the meter, water the plants, load the van, sharpen the knives, answer the "
        "letters, sweep the yard, mend the roof"
    ),
    "number": listed("two, three, five, eight, eleven, twelve, fifteen, twenty, thirty, forty"),
    "file": listed(
        "notes.txt, config.yaml, users.csv, backup.zip, main.py, report.pdf, index.html"
    ),
    "setting": listed("time limit, port, path, volume, language of the keyboard, memory limit"),
    "machine": listed(
        "printer, server, lift, washing machine, heater, dishwasher, projector, tractor"
    ),
    "animal": listed("goat, donkey, squirrel, goose, piglet, puppy, hen, badger, mouse"),
    "food": listed(
        "rice, cabbage, beans, garlic, pepper, mushrooms, butter, carrots, barley, pumpkin"
    ),
    "weather": listed("rain, hail, fog, heat, storm, frost, thunder, snow"),
}
