"""The example scripts of EasyEdit that offer MEND or take a method's name: how each is called with
what `material` makes, and where its figures are then."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One call of one script.

    `options` are options of `mend-parallel run`. `arguments` is the script's command line; HPARAMS,
    DATA and MODEL in it stand for the yaml file and for the folders of the data and of the model.
    Figures are in the json files that it writes into `out`; with `printed`, in the last line of its
    output that starts with `{`. `given` is a file that it finds where it runs.
    """

    script: str
    arguments: str
    options: str = ""
    model: str = "toy-llama"
    training: bool = False
    function: str | None = None
    printed: bool = False
    given: str | None = None

    @property
    def title(self) -> str:
        return f"{self.script}: {self.function}" if self.function else self.script


EDITS = "--editing_method MEND --hparams_dir HPARAMS"
KNOWEDIT = f"{EDITS} --data_dir DATA/knowedit.json --metrics_save_dir out --datatype"
ROWS = f"{EDITS} --data_dir DATA --output_dir out --data_type"

ADDED = "--set sequence=add"
"""Edits in a row are solved together by default, and added by EasyEdit's MEND."""

CASES = [
    Case("run_knowedit_llama2.py", f"{KNOWEDIT} zsre"),
    Case(
        "run_knowedit_llama2.py",
        f"{EDITS} --data_dir DATA/knowedit_without_locality.json --metrics_save_dir out "
        "--datatype zsre",
    ),
    Case(
        "run_knowedit_llama2.py",
        f"{EDITS} --data_dir DATA/wikibio.json --metrics_save_dir out --datatype wikibio",
    ),
    Case("run_AlphaEdit_editing.py", f"{ROWS} ZsRE"),
    Case("run_AlphaEdit_editing.py", f"{ROWS} CF --sequential_edit", ADDED),
    Case("run_SPHERE_editing.py", f"{ROWS} MCF"),
    Case("run_wise_editing.py", f"{ROWS} ZsRE"),
    Case("run_wise_editing.py", f"{ROWS} hallucination --sequential_edit", ADDED),
    Case("run_wise_editing.py", f"{ROWS} temporal"),
    Case(
        "run_longform.py",
        f"{EDITS} --data_dir DATA/zsre_mend_eval.json --dataset_type zsre --metrics_save_dir out",
    ),
    Case(
        "run_LLM_evaluation.py",
        f"{EDITS} --data_dir DATA/knowedit.json --output_dir out --datatype zsre "
        "--evaluation_type generate-text",
    ),
    Case("run_convsent_llama2.py", f"{EDITS} --data_dir DATA --metrics_save_dir out"),
    Case(
        "test_InstructEdit.py",
        f"{EDITS} --data_dir DATA --data instruct.json --data_type counterfact "
        "--metrics_save_dir out",
    ),
    Case(
        "test_InstructEdit.py",
        f"{EDITS} --data_dir DATA --data zsre_mend_eval_portability_gpt4.json --data_type zsre "
        "--metrics_save_dir out --inst_index 0",
    ),
    Case(
        "run_Hallueditbench.py",
        f"{EDITS} --data_path DATA/people.csv --eval_model_id MODEL --results_dir out",
    ),
    Case(
        "run_santinization_llama2.py",
        f"{EDITS} --data_dir DATA --specify_answer cheese",
        training=True,
        printed=True,
        given="locality.cache",
    ),
    Case("edit.py", "", function="test_MEND", given="hparams/MEND/gpt2-xl.yaml", model="toy-gpt"),
    Case("edit.py", "", function="test_MEND_Llama", given="hparams/MEND/llama-7b.yaml"),
    Case(
        "edit.py",
        "",
        function="test_MEND_Meta_Train",
        given="hparams/TRAINING/MEND/llama-7b.yaml",
        training=True,
    ),
    Case("run_zsre_llama2.py", f"{EDITS} --data_dir DATA --metrics_save_dir out"),
    Case(
        "run_CKnowEdit.py",
        f"{EDITS} --data_dir DATA/knowedit.json --chinese_ds_type any --metrics_save_dir out",
    ),
    Case(
        "run_AKEW_both.py",
        f"{EDITS} --data_dir DATA --data_type counterfact --metrics_save_dir out",
    ),
    Case("run_WikiBigEdit.py", f"{EDITS} --data_dir DATA/knowedit.json --metrics_save_dir out"),
    Case("run_ultraedit_editing.py", f"{ROWS} zsre"),
    Case("run_SimIE_editing.py", f"{ROWS} ZsRE"),
    Case(
        "run_concept_editing.py",
        f"{EDITS} --edited_model llama2chat --data_dir DATA --metrics_save_dir out",
    ),
]
