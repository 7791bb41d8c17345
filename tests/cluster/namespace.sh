#!/usr/bin/env bash
# The first process of the cluster's namespaces (`namespace.sh cluster DIR`) and of a node's (`namespace.sh node DIR NAME
# ADDRESS`). When it dies the kernel ends everything inside. Mounts and interfaces made here exist only inside.
set -euo pipefail
role=$1 directory=$2
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs /run
ip link set lo up

wait_for_ever() { # bash takes in the processes whose parents died
  while :; do sleep 3600 & wait $! || true; done
}

case $role in
  cluster)
    hostname ctl
    mount --bind "$directory/hosts" /etc/hosts
    mount --bind "$directory/ssh" /etc/ssh/ssh_config.d
    ip link add bridge0 type bridge
    ip address add 10.88.0.1/24 dev bridge0
    ip link set bridge0 up
    munged --force --key-file="$directory/munge.key" --socket="$directory/munge.socket" \
      --pid-file=/run/munged.pid --log-file="$directory/munged.log" --seed-file=/run/munged.seed
    slurmctld -D -f "$directory/slurm.conf" &
    touch "$directory/cluster.up"
    wait_for_ever
    ;;
  node)
    name=$3 address=$4
    hostname "$name"
    until ip link show eth0 > /dev/null 2>&1; do sleep 0.02; done
    ip address add "$address/24" dev eth0
    ip link set eth0 up
    # What tells machines apart: shared memory and the boot id, else MPI takes two nodes for one.
    mount -t tmpfs -o mode=1777 tmpfs /dev/shm
    cat /proc/sys/kernel/random/uuid > /run/boot_id
    mount --bind /run/boot_id /proc/sys/kernel/random/boot_id
    mkdir -p /run/sshd "$directory/spool/$name"
    /usr/sbin/sshd -D -f "$directory/ssh/sshd_config" &
    slurmd -D -N "$name" -f "$directory/slurm.conf" &
    wait_for_ever
    ;;
esac
