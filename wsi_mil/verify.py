"""The verify command: every file of a run opened, counted and hashed against its record.

Comes in: a run folder. Goes out: what is wrong, one outcome per problem; with ``repair`` what can be made
again is removed. What is checked, and how, is the store's business.
"""

from pathlib import Path

from wsi_mil import parallel, store
from wsi_mil.config import VerifyConfig
from wsi_mil.errors import ConfigError, StoreError
from wsi_mil.parallel import Outcome, StageResult


def run(config: VerifyConfig) -> StageResult:
    """Check every file of a run; a problem is a failed outcome, named by its file.

    With ``repair`` leftovers and files that are wrong are removed, and count as done; what no stage can make
    again stays failed. Files without checksums are skipped outcomes, with the reason.

    Raises:
        ConfigError: there is no such run folder, or ``repair`` of a folder in which no stage has run.
    """
    if not config.run.is_dir():
        raise ConfigError(f"--run {config.run}: no such folder.")
    if config.repair and not any(config.run.glob("*/stage.json")):
        raise ConfigError(
            f"--repair: {config.run} is no run folder: no stage has left its stage.json there; "
            "nothing is removed."
        )
    verification = store.Verification(config.run)
    with parallel.progress("verify", len(verification.checks), "checks") as report:
        for check in verification.checks:
            check()
            report(1)
    outcomes = [_outcome(config, problem) for problem in verification.problems]
    wrong = {problem.file for problem in verification.problems}
    wrong |= {str(parent) for file in wrong for parent in Path(file).parents}
    outcomes += [
        Outcome(slide_id=_name(config.run, file), status="done")
        for file in verification.files
        if file not in wrong
    ]
    return StageResult(stage="verify", output=config.run, outcomes=outcomes, named="file")


def _outcome(config: VerifyConfig, problem: store.Problem) -> Outcome:
    name, found = _name(config.run, problem.file), f"{problem.kind}: {problem.detail}"
    if problem.is_remark:
        return Outcome(slide_id=name, status="skipped", facts={"reason": found})
    advice = problem.what_to_do()
    if config.repair:
        try:
            if problem.repair():
                again = f"; run `wsi-mil {problem.command}` to make it again" if problem.command else ""
                return Outcome(slide_id=name, status="done", facts={"reason": f"removed ({found}){again}"})
        except StoreError as error:
            advice = str(error)
    return Outcome(
        slide_id=name, status="failed", reason=f"{found}; {advice}", facts={"problem": problem.kind}
    )


def _name(run: Path, file: str) -> str:
    return str(Path(file).relative_to(run)) if file.startswith(f"{run}/") else file
