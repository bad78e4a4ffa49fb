"""Checks the bucket of a pod's runs before the machines are set up, as far as gcloud shows it."""

import json

from cpt_jax.pod import commands
from cpt_jax.pod.gcloud import Cloud, GcloudError
from cpt_jax.runtime.errors import UserError


def check_bucket(cloud: Cloud) -> None:
    """Prints a note for each property of the pod's bucket that makes runs slow or unsafe.

    Raises:
      UserError: the bucket does not exist.
    """
    pod = cloud.pod
    region = pod.zone.rpartition('-')[0]
    options = f'--location={region} --uniform-bucket-level-access --enable-hierarchical-namespace'
    try:
        answer = cloud.run_query(commands.make_describe_bucket_command(pod))
    except GcloudError as error:
        if '404' in str(error) or 'not found' in str(error).lower():
            raise UserError(
                f'there is no bucket gs://{pod.bucket}: make it with gcloud storage buckets '
                f'create gs://{pod.bucket} {options}'
            ) from error
        cloud.report(f'note: gs://{pod.bucket} was not checked: {error}')
        return
    if cloud.dry_run:
        return
    notes = list_notes(json.loads(answer), region)
    for note in notes:
        cloud.report(f'note: gs://{pod.bucket} {note}')
    if notes:
        other = f'gs://{pod.bucket}-{region}'
        cloud.report(
            f'note: gcloud storage buckets create {other} {options} makes a better one, for '
            f'--bucket {other.removeprefix("gs://")}'
        )


def list_notes(bucket: dict, region: str) -> list[str]:
    """Returns the notes on a bucket.

    Args:
      bucket: what `gcloud storage buckets describe --format=json` prints.
      region: region of the pod.
    """
    notes = []
    location = bucket.get('location', '').lower()
    if bucket.get('location_type', 'region') == 'region' and location != region:
        notes.append(f'is in {location} and the pod in {region}: traffic is slow and is charged')
    if not bucket.get('hierarchical_namespace', {}).get('enabled'):
        notes.append(
            'has no hierarchical namespace: on a mount, a renamed folder is copied object by object'
        )
    return notes
