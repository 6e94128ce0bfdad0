"""One save by all ranks of a group: each writes its own files, and the first one makes a checkpoint of them.

    first rank      makes the draft and says where it is
    every rank      writes and fsyncs its files there, hashed on the way, and tells names, sizes and hashes
    first rank      looks whether they are all there and make up a whole; manifest, rename, fsync of the parent; prunes

A rank whose disk refuses says so, and nothing is renamed. A crash of any rank leaves a draft, which `sweep` removes.
A rank that does not see the draft, because its host does not share the run directory, sends its files to the first one.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .checkpoint import CheckpointError, Manifest, draft, fill, prune, seal, step_name
from .durable import Chunk, FileRecord, write_file
from .reports import Report, Reports

WRITE_S = 600.0
"""The longest that a rank may take to write its part, in seconds."""
Files = Mapping[str, Iterable[Chunk]]


def nothing_more(folder: Path, names: Iterable[str], told: list[Any]) -> Files:
    """For content that needs no last file."""
    return {}


@dataclass(frozen=True, slots=True)
class Share:
    """What one rank gives to a checkpoint.

    files: its own, by names that no other rank uses. told: JSON for the first rank. last: called there when all files
    are in the draft, with their names and what each rank told; -> files to add. Raises CheckpointError when the files
    are not what they should be together.
    """

    files: Files
    told: Any = None
    last: Callable[[Path, Iterable[str], list[Any]], Files] = nothing_more


def save(
    root: Path,
    step: int,
    share: Share,
    extra: Mapping[str, Any],
    keep: int = 2,
    reports: Reports | None = None,
    there: Collection[str] = (),
) -> Manifest | None:
    """Write step `step` durably, then delete all but the newest `keep` verified checkpoints; None on other ranks.

    All ranks of a group must ask. there: see `prune`. Raises CheckpointError when a disk refuses (full, read-only);
    earlier checkpoints stay as they were. Raises RuntimeError when another rank is silent for WRITE_S.
    """
    if reports:
        reports.begin()
    if reports and reports.rank:
        _help(root, share, reports)
        return None
    manifest = _lead(root, step, share, extra, reports)
    prune(root, keep, root / step_name(step), there)
    return manifest


def _help(root: Path, share: Share, reports: Reports) -> None:
    """Another rank's part. What the disk refuses is told; anything else is raised here, too."""
    folder = reports.announced(WRITE_S)
    if not folder:
        return
    if not (root / folder).is_dir():
        _send(share, reports)
        return
    try:
        records = fill(root / folder, share.files)
    except OSError as error:
        reports.tell({"error": str(error)})
    except Exception as error:
        reports.tell({"error": repr(error)})
        raise
    else:
        reports.tell({"files": _plain(records), "told": share.told})


def _send(share: Share, reports: Reports) -> None:
    """Another rank's part where the draft is out of sight."""
    reports.tell({"coming": list(share.files), "told": share.told})
    for name, chunks in share.files.items():
        reports.send(name, chunks)


def _receive(folder: Path, rank: int, report: Report, reports: Reports) -> Report:
    """The same part, written by the first rank; heard to its end even where the disk refuses."""
    refused: OSError | None = None
    records: dict[str, FileRecord] = {}
    for name in report["coming"]:
        chunks = reports.receive(rank, name)
        try:
            records[name] = write_file(folder / name, chunks)
        except OSError as error:
            refused = error
            for _ in chunks:
                pass
    return {"error": str(refused)} if refused else {"files": _plain(records), "told": report["told"]}


def _lead(root: Path, step: int, share: Share, extra: Mapping[str, Any], reports: Reports | None) -> Manifest:
    announced = not reports
    try:
        with draft(root, step) as folder:
            if reports:
                reports.announce(folder.name)
                announced = True
            records, told = _collect(folder, root / step_name(step), share, reports)
            records |= fill(folder, share.last(folder, list(records), told))
            return seal(folder, step, records, extra)
    finally:
        if reports and not announced:
            reports.announce("")


def _collect(
    folder: Path, target: Path, share: Share, reports: Reports | None
) -> tuple[dict[str, FileRecord], list[Any]]:
    """Every rank's files, in the draft, and what each told. The others are heard to their end in any case."""
    try:
        records = fill(folder, share.files)
    finally:
        others = reports.gather(WRITE_S) if reports else []
        for rank, report in enumerate(others, 1):
            if reports and "coming" in report:
                others[rank - 1] = _receive(folder, rank, report, reports)
    for rank, report in enumerate(others, 1):
        records |= _checked(folder, target, rank, report)
    return records, [share.told, *(report["told"] for report in others)]


def _checked(folder: Path, target: Path, rank: int, report: Report) -> dict[str, FileRecord]:
    """What another rank wrote, if it is there."""
    if "error" in report:
        raise CheckpointError(f"cannot write checkpoint {target}: rank {rank}: {report['error']}; older ones remain")
    records = {name: FileRecord(**record) for name, record in report["files"].items()}
    for name, record in records.items():
        file = folder / name
        if not file.exists() or file.stat().st_size != record.bytes:
            raise CheckpointError(
                f"cannot write checkpoint {target}: rank {rank} wrote {name}, which is not in {folder} as the first "
                "rank sees it: two hosts have a folder of this name, and it is not the same one"
            )
    return records


def _plain(records: Mapping[str, FileRecord]) -> dict[str, dict[str, Any]]:
    return {name: asdict(record) for name, record in records.items()}
