"""Put an exported student on the hub."""

from __future__ import annotations

from pathlib import Path

from .errors import StepDistillError, UserError
from .teachers import first_line, read_card


def check_name(name: str) -> None:
    """UserError for what cannot name a repository of the hub, before there is one."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"{name} is no name of a repository: {first_line(error)}") from error


def push_to_hub(folder: Path, name: str, private: bool = False) -> str:
    """Upload the student in ``folder`` to the repository ``name`` (owner/model); its address.

    UserError for a folder that is no student or a name that is none, StepDistillError where the hub
    refuses (no token, no right, no network).
    """
    from huggingface_hub import HfApi

    check_name(name)
    if "plan" not in read_card(folder):
        raise UserError(f"{folder} is no exported student: there is nothing to push")
    hub = HfApi()
    try:
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(
            repo_id=address.repo_id, folder_path=folder, commit_message="Add a few-step student"
        )
    except (OSError, ValueError) as error:  # the hub's HTTP errors are OSErrors
        raise StepDistillError(
            f"{folder} could not be put on the hub as {name}: {first_line(error)}. Log in with "
            "`hf auth login`; the folder itself is whole"
        ) from error
    return str(address)
