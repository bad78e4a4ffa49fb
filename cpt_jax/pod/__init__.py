"""Runs on Cloud TPU pod slices, by means of gcloud: what the programs in launch/tpu/ do.

Flags and states are those of Google's reference
(cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources and
cloud.google.com/tpu/docs/queued-resources), and gcloud 528's own parser takes every command. What
they do was tested against a stand-in for gcloud, and never on Google Cloud.
"""
