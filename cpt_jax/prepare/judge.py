"""First stage: reads the items of a task, filters them, and stores the keys of those that pass."""

from array import array

import numpy as np

from cpt_jax.prepare.counts import Counts
from cpt_jax.prepare.document import Dropped, Unreadable
from cpt_jax.prepare.duplicates import compute_key, save_content_keys
from cpt_jax.prepare.filters import explain_rejected
from cpt_jax.prepare.items import iterate_items
from cpt_jax.prepare.near_duplicates import SignatureStore, compute_signature
from cpt_jax.prepare.plan import Preparation
from cpt_jax.prepare.work_folder import WorkFolder, save_array
from cpt_jax.storage.json_files import write_json


def judge_task(plan: Preparation, folder: WorkFolder, rank: int) -> None:
    """Judges the items of a task.

    Writes `judged/RANK.npy`, bool: whether each item passes the filters; the keys of those that do;
    and the counts, with a digest of the files' states before they were read.

    Args:
      plan: the plan.
      folder: work folder.
      rank: index of the task.
    """
    task = plan.tasks[rank]
    states = task.digest_files()
    counts = Counts(files=len(task.files), bytes=task.size)
    # A task may have millions of short items, so these are no lists of objects.
    passes = bytearray()
    keys = bytearray()
    items = array('I')
    signatures = SignatureStore()
    filters = plan.filters
    for item in iterate_items(plan.sources[task.source], task):
        if isinstance(item, Unreadable):
            counts.add_unreadable(item)
            continue
        if isinstance(item, Dropped):
            counts.dropped[item.reason] += item.number
            continue
        counts.records += 1
        counts.characters += len(item.text)
        reason = explain_rejected(item.text, filters)
        if reason:
            counts.dropped[reason] += 1
        if not reason and plan.duplicates.exact:
            keys += compute_key(item.text)
            items.append(len(passes))
        if not reason and plan.duplicates.near:
            signature = compute_signature(item.text)
            if signature is not None:
                signatures.add(len(passes), signature)
        passes.append(not reason)
    save_content_keys(folder, rank, keys, items, plan.partitions)
    if plan.duplicates.near:
        signatures.save(folder, rank, plan.near_partitions)
    save_array(folder.get_path('judged', rank, '.npy'), np.frombuffer(passes, bool))
    stored = {'counts': counts.to_json(), 'states': states}
    write_json(folder.get_path('judged', rank, '.json'), stored)
