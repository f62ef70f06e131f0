#!/usr/bin/env bash
# A SLURM on this one machine that looks like Aire to its users, for tests. As root:
#
#   tools/slurm.sh install       Debian's packages, none of them started
#   tools/slurm.sh start         whatever of it does not run yet
#   tools/slurm.sh stop [NAME]   all of it, or one daemon: slurmctld, slurmd-gpu001, ...
#
# As on Aire: partitions nodes (the default) and gpu, three GPUs, 24 cores and 250 GB a GPU node, no job without a time,
# accounting, a cap on the GPUs of one user. The GPUs are pretended, and several nodes are this one machine. No systemd,
# no cgroups: memory is counted, but not enforced. All is in $TRIPTYCH_SLURM, apart from links in /etc/slurm, which are
# needed because Snakemake's jobs drop SLURM_CONF.
set -euo pipefail
folder=${TRIPTYCH_SLURM:-${TMPDIR:-/tmp}/triptych-slurm}
port=16817 # and the next five
packages=(slurmctld slurmd slurm-client munge slurmdbd slurm-wlm-mysql-plugin mariadb-server)
cap=3 # GPUs of one user; 15 on Aire, where there are more
host=$(hostname -s)

fail() { echo "slurm.sh: $*" >&2; exit 1; }

install() {
    # Debian's scripts would start daemons where this does not forbid it.
    local policy=/usr/sbin/policy-rc.d
    if [ ! -e $policy ]; then
        trap "rm -f $policy" EXIT
        printf '#!/bin/sh\nexit 101\n' > $policy
        chmod 755 $policy
    fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${packages[@]}" > /dev/null
}

# running NAME: the process that we started under this name is there, and no other has its number
running() {
    local pid
    pid=$(cat "$folder/run/$1" 2> /dev/null) && [ "$(cat "/proc/$pid/comm" 2> /dev/null)" = "${1%%-*}" ]
}

# launch NAME COMMAND...: a daemon in the background, unless it runs
launch() {
    local name=$1
    shift
    running "$name" && return
    setsid "$@" >> "$folder/log/$name.out" 2>&1 < /dev/null &
    echo $! > "$folder/run/$name"
}

# until_so NAME COMMAND...: wait until a command succeeds, a minute at most
until_so() {
    local name=$1
    shift
    for _ in {1..300}; do
        "$@" > /dev/null 2>&1 && return
        sleep 0.2
    done
    fail "$name does not answer; its log is in $folder/log"
}

end() {
    if running "$1"; then
        local pid
        pid=$(cat "$folder/run/$1")
        kill "$pid"
        for _ in {1..100}; do
            running "$1" || break
            sleep 0.1
        done
        if running "$1"; then kill -9 "$pid"; fi
    fi
    rm -f "$folder/run/$1"
}

configure() {
    cat > "$folder/etc/slurm.conf" << CONF
ClusterName=aire
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/.slurmctld
SlurmdPidFile=$folder/run/.slurmd-%n
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd-%n.log

# one machine, without systemd and cgroups, that plays several
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldTimeout=30
SlurmdTimeout=30
TaskProlog=$folder/etc/task_prolog
Epilog=$folder/etc/epilog

# cores, memory and GPUs are what is shared out
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
DefMemPerCPU=1024
EnforcePartLimits=ALL
JobSubmitPlugins=require_timelimit
SchedulerParameters=batch_sched_delay=0,bf_interval=2,sched_interval=2,sched_min_interval=0
KillWait=5
JobRequeue=0

AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 1))
AccountingStoragePass=$folder/munge/socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos
AccountingStoreFlags=job_comment
JobAcctGatherType=jobacct_gather/linux

NodeName=gpu[001-002] NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 3))-$((port + 4)) CPUs=24 CoresPerSocket=24 RealMemory=250000 Gres=gpu:nvidia_l40:3
NodeName=node001 NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 5)) CPUs=168 Sockets=2 CoresPerSocket=84 RealMemory=750000
PartitionName=nodes Nodes=node001 Default=YES MaxTime=2-00:00:00
PartitionName=gpu Nodes=gpu[001-002] MaxTime=2-00:00:00
CONF
    # A GPU must be a device, and its number is read from the name.
    for number in 0 1 2; do ln -sfn /dev/null "$folder/etc/nvidia$number"; done
    echo "NodeName=gpu[001-002] Name=gpu Type=nvidia_l40 File=$folder/etc/nvidia[0-2]" > "$folder/etc/gres.conf"
    cat > "$folder/etc/slurmdbd.conf" << CONF
DbdHost=$host
DbdAddr=127.0.0.1
DbdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=$folder/munge/socket
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 2))
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
PidFile=$folder/run/.slurmdbd
LogFile=$folder/log/slurmdbd.log
CommitDelay=0
CONF
    chmod 600 "$folder/etc/slurmdbd.conf"
    # A temporary folder for every job, gone when it ends.
    printf '#!/bin/sh\nmkdir -p "%s/tmp/job.$SLURM_JOB_ID"\necho "export TMPDIR=%s/tmp/job.$SLURM_JOB_ID"\n' \
        "$folder" "$folder" > "$folder/etc/task_prolog"
    printf '#!/bin/sh\nrm -rf "%s/tmp/job.$SLURM_JOB_ID"\n' "$folder" > "$folder/etc/epilog"
    chmod 755 "$folder/etc/task_prolog" "$folder/etc/epilog"
    for name in slurm.conf gres.conf slurmdbd.conf; do
        # A link is that of an earlier start, which may have been killed; another that runs holds the ports.
        if [ -e /etc/slurm/$name ] && [ ! -L /etc/slurm/$name ]; then
            fail "/etc/slurm/$name belongs to another SLURM"
        fi
    done
    mkdir -p /etc/slurm
    ln -sfn "$folder"/etc/*.conf /etc/slurm/
}

sql() { mariadb --no-defaults --socket="$folder/run/.mysql" --user=root "$@"; }
manage() { sacctmgr --immediate "$@" >> "$folder/log/sacctmgr.out" 2>&1; }
# Empty for no node, or for one that does not answer: `idle*`, `unknown`, `down`, ...
nodes_answer() { [ "$(sinfo -h -N -o %T | grep -cxE 'idle|mixed|allocated|completing')" -ge 3 ]; }

start() {
    for name in slurmctld slurmd slurmdbd sbatch munged mariadbd; do
        command -v $name > /dev/null || fail "$name is not there: tools/slurm.sh install"
    done
    mkdir -p "$folder"/{etc,run,log,munge,state,spool,tmp}
    chmod 755 "$folder" "$folder/munge"
    configure
    if ! running munged; then
        [ -s "$folder/munge/key" ] || (umask 077 && head -c 128 /dev/urandom > "$folder/munge/key")
        rm -f "$folder"/munge/socket*
        # --force: a folder of tests is closed to other users.
        launch munged munged --foreground --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" \
            --pid-file="$folder/run/.munged" --seed-file="$folder/munge/seed" --log-file="$folder/log/munged.log"
        until_so munged munge --no-input --socket="$folder/munge/socket"
    fi
    if ! running mariadbd; then
        [ -d "$folder/mysql/mysql" ] || mariadb-install-db --no-defaults --user=root --datadir="$folder/mysql" \
            --auth-root-authentication-method=normal --skip-test-db > "$folder/log/mariadb-install.out" 2>&1
        launch mariadbd mariadbd --no-defaults --user=root --datadir="$folder/mysql" --socket="$folder/run/.mysql" \
            --pid-file="$folder/run/.mariadbd" --bind-address=127.0.0.1 --port=$((port + 2)) --skip-name-resolve \
            --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0
        until_so mariadbd sql -e 'select 1'
        sql -e "create database if not exists slurm; grant all on slurm.* to slurm@'127.0.0.1' identified by 'slurm'"
    fi
    launch slurmdbd slurmdbd -D
    until_so slurmdbd sacctmgr show qos
    if [ -z "$(sacctmgr -nP show account leeds)" ]; then
        [ -n "$(sacctmgr -nP show cluster aire)" ] || manage add cluster aire
        manage add account leeds Cluster=aire
        # slurmdbd adds root to its own account by itself
        manage add user root Account=leeds DefaultAccount=leeds Cluster=aire || true
        manage modify user root set DefaultAccount=leeds
    fi
    launch slurmctld slurmctld -D
    until_so slurmctld scontrol ping
    # Only now: slurmdbd hears from slurmctld that GPUs are counted.
    [ -n "$(sacctmgr -nP show qos gpulimits)" ] || until_so slurmdbd manage add qos gpulimits MaxTRESPerUser=gres/gpu=$cap
    until_so slurmctld scontrol update PartitionName=gpu QOS=gpulimits
    for node in gpu001 gpu002 node001; do launch slurmd-$node slurmd -D -N $node; done
    until_so slurmd nodes_answer
}

stop() {
    [ -d "$folder/run" ] || return 0
    if [ $# -gt 0 ]; then
        end "$1"
        return
    fi
    if running slurmctld && timeout 20 scancel --user=root; then
        # Jobs would outlive their node's daemon.
        for _ in {1..75}; do
            [ -n "$(squeue -h)" ] || break
            sleep 0.2
        done
    fi
    for name in slurmd-gpu001 slurmd-gpu002 slurmd-node001 slurmctld slurmdbd mariadbd munged; do end $name; done
    for name in slurm.conf gres.conf slurmdbd.conf; do
        [ ! "/etc/slurm/$name" -ef "$folder/etc/$name" ] || rm "/etc/slurm/$name"
    done
}

[ "$(id -u)" = 0 ] || fail "it must run as root"
case ${1:-} in
    install | start | stop) "$@" ;;
    *) fail "what to do? install, start or stop" ;;
esac
