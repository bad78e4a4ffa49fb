"""Training runs on Cloud TPU pod slices, through gcloud: the code of the programs in launch/tpu/.

Flags and states are as in Google's reference
(cloud.google.com/sdk/gcloud/reference/compute/tpus/queued-resources and
cloud.google.com/tpu/docs/queued-resources). The parser of gcloud 528 accepts every command. The
programs were tested with a fake gcloud, and never on Google Cloud.
"""
