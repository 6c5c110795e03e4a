"""What any training of the hypernetwork needs, whoever's loop it runs in. Knows no loop."""
