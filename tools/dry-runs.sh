#!/usr/bin/env bash
# Dry run of every configuration and of the cluster's profile: each must plan without a hub, a GPU or a cluster.
set -euo pipefail
snakemake=${1:-snakemake}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
plan() {
    echo "dry run: $*"
    # In an empty folder, so that the plan is that of the whole study, whatever has been made here already.
    "$snakemake" --dry-run --directory "$folder" "$@" >"$folder/plan.txt" 2>&1 || { cat "$folder/plan.txt"; return 1; }
    sed -n '/^Job stats:/,/^total/p; /^total/q' "$folder/plan.txt"
}
for config in config/*.yaml; do
    plan --profile profiles/local --configfile "$config"
done
plan --profile profiles/aire
