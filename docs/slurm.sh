#!/bin/bash
# A sweep on several nodes of SLURM: sbatch docs/slurm.sh GRID.yaml STORE, in the folder of .venv; that folder, the store
# and the home folder lie on a file system that all nodes share. Ray is started on each node, the sweep on the first.
#SBATCH --job-name=anchorlens
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
set -euo pipefail

export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token  # nobody else may use this Ray; the token is in the home folder
.venv/bin/ray get-auth-token --generate > /dev/null
port=$((20000 + SLURM_JOB_ID % 10000))  # another job may have its own Ray on the same node
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(getent ahostsv4 "${hosts[0]}" | awk 'NR == 1 { print $1 }'):$port

start() {  # HOST OPTIONS
    srun --nodes=1 --ntasks=1 --nodelist="$1" .venv/bin/ray start --block --num-cpus="$SLURM_CPUS_PER_TASK" \
        --num-gpus="${SLURM_GPUS_ON_NODE:-0}" "${@:2}" > "ray-$SLURM_JOB_ID-$1.log" 2>&1 &
}
start "${hosts[0]}" --head --port="$port" --include-dashboard=false
for host in "${hosts[@]:1}"; do
    sleep 15  # the head comes first
    start "$host" --address="$address"
done
for _ in {1..60}; do  # the sweep takes the nodes that are there when it starts
    there=$(.venv/bin/ray status --address "$address" 2> /dev/null | grep -c '^ 1 node_' || true)
    [ "$there" -lt "${#hosts[@]}" ] || break
    sleep 5
done

code=0
.venv/bin/anchorlens sweep "$1" --store "${2:-outputs}" --engine ray --address "$address" || code=$?
kill $(jobs -p) 2> /dev/null || true  # ends Ray on every node
wait
exit "$code"
