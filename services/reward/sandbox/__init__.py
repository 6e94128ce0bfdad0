"""Where code that nobody vouches for runs: the ladder of isolation levels, strongest first.

    bwrap       bubblewrap builds a root of its own: read-only system and interpreter, sized tmpfs, fresh /proc, /dev;
                new user, network, IPC, PID, mount, UTS and cgroup namespaces. Inside, what "namespaces" adds.
    namespaces  the same namespaces made with the standard library; then Landlock (reads only what Python needs, writes
                only its own folder), seccomp, rlimits, no privileges, a PID 1 of ours that nobody inside may touch.
    rlimits     limits and an empty environment in a process group. For trusted code only.
    remote      a sandbox service elsewhere, over HTTP (`remote`, `server`).

At the first two, the user's file is imported once by a sealed process, PID 1 of its namespace (`zygote`), which forks
one process per call; after each call everything else in the namespace is killed and reaped, and the folder emptied.

Stopped at both: reading and writing other files, TCP, UDP and Unix sockets, abstract ones too, ptrace and its kin, more
namespaces, signals to and memory of others, the verdicts of other calls, fork storms, output, files and memory without
bound (per process), survivors by setsid(), and whatever outlives a SIGKILL of the service.

Not stopped: bugs of the kernel, timing and cache side channels, a GPU's memory; at "namespaces" stat() of paths, and
truncate() of what this user may write before Linux 6.2; the processes of one call together taking more memory than one
may (the kernel takes them first when it runs out); code that `reward_fn` runs in its own process, or in a fork of it,
choosing the verdict of its own call (run it as a program, by `subprocess`: the channel is out of its reach there);
with `network: true`, every host that the machine reaches. For hostile code at scale use virtual machines, and `remote`.

`start`, `worker`, `enter`, `zygote` and what they import run inside, by their path, on the standard library alone.
"""
