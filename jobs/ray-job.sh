#!/bin/sh
# Label images on a Ray cluster: a job, which asks for as many workers as there are GPUs, and takes in nodes that join.
# Run this where the dashboard of the cluster answers; input, labels and --out lie where all nodes see them. For a
# cluster that scales by itself, add --workers N. Whatever ended the job, run this again: it does what is open.
#     ray job logs -f ID, ray job stop ID; clipbatch status /data/scores
export RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"

exec ray job submit --entrypoint-num-cpus 0 -- \
    clipbatch run /data/photos --labels /data/labels.txt --engine ray --out /data/scores
