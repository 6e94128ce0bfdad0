"""A seccomp filter: refuses system calls that scoring needs not and that reach out of the sandbox or into others.

A deny-list, answered by EPERM, so that libraries fall back instead of dying. Sockets are refused but for connected
pairs (asyncio needs one) or, with `network`, but for the Internet's.
"""

import ctypes
import errno
import struct

from .libc import MACHINE, syscall

_X86 = "x86_64"
# name: number on x86_64, on aarch64 (None: not there)
_DENIED: dict[str, tuple[int | None, int | None]] = {
    # into other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "pidfd_getfd": (438, 438), "process_madvise": (440, 440), "move_pages": (279, 239),
    "perf_event_open": (298, 241),
    # out of the file system and the namespaces
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41),
    "chroot": (161, 51), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "name_to_handle_at": (303, 264), "open_by_handle_at": (304, 265), "quotactl": (179, 60),
    "quotactl_fd": (443, 443), "fanotify_init": (300, 262),
    # what outlives a process, and would be found by the next call
    "shmget": (29, 194), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180),
    # where the kernel is large, and calls pass unseen by this filter
    "bpf": (321, 280), "userfaultfd": (323, 282), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "memfd_secret": (447, 447), "personality": (135, 92), "modify_ldt": (154, None), "iopl": (172, None),
    "ioperm": (173, None),
    # the machine
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106), "kexec_load": (246, 104),
    "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224), "swapoff": (168, 225),
    "acct": (163, 89), "settimeofday": (164, 170), "clock_settime": (227, 112), "adjtimex": (159, 171),
    "clock_adjtime": (305, 266), "syslog": (103, 116),
}  # fmt: skip
_SOCKETS = {"connect": (42, 203), "bind": (49, 200), "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242)}
_SOCKET, _SOCKETPAIR, _CLONE, _CLONE3 = (41, 198), (53, 199), (56, 220), (435, 435)
# refused when an argument is our own process in there, 1, or means all of its user: (numbers, (argument, value)...)
_NOT_ON_INIT: dict[str, tuple[int, int, tuple[tuple[int, int], ...]]] = {
    "kill": (62, 129, ((0, 1),)), "tkill": (200, 130, ((0, 1),)), "tgkill": (234, 131, ((0, 1),)),
    "rt_sigqueueinfo": (129, 138, ((0, 1),)), "rt_tgsigqueueinfo": (297, 240, ((0, 1),)),
    "pidfd_open": (434, 434, ((0, 1),)), "prlimit64": (302, 261, ((0, 1),)),
    "sched_setaffinity": (203, 122, ((0, 1),)), "sched_setscheduler": (144, 119, ((0, 1),)),
    "sched_setparam": (142, 118, ((0, 1),)), "sched_setattr": (314, 274, ((0, 1),)),
    "setpriority": (141, 140, ((1, 1), (0, 2))), "ioprio_set": (251, 30, ((1, 1), (0, 3))),
}  # fmt: skip
_NEW_NAMESPACES = 0x7E020000
_LOAD, _EQUAL, _BELOW, _ANY, _AND, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
_ALLOW, _REFUSE, _ABSENT = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x00050000 | errno.ENOSYS
_AUDIT = {_X86: 0xC000003E, "aarch64": 0xC00000B7}
_SET_FILTER = {_X86: 317, "aarch64": 277}
_INET, _INET6, _STREAM = 2, 10, 1
Step = tuple[int, int, int, int]


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_void_p)]


def known() -> bool:
    """Whether there is a filter for this machine's processor."""
    return MACHINE in _AUDIT


def install(*, network: bool) -> None:
    """Put this process and all its children under the filter, for good; needs `no_new_privileges`."""
    steps = _steps(network)
    buffer = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = _Program(len(steps), ctypes.addressof(buffer))
    syscall(_SET_FILTER[MACHINE], "seccomp", 1, 0, ctypes.byref(program))


def _steps(network: bool) -> list[Step]:
    """The filter, a list of (operation, jump if true, jump if false, operand)."""
    column = 0 if MACHINE == _X86 else 1
    steps: list[Step] = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _AUDIT[MACHINE]), (_RETURN, 0, 0, _REFUSE), (_LOAD, 0, 0, 0)]
    if MACHINE == _X86:  # the x32 calls have other numbers
        steps += [(_BELOW, 0, 1, 0x40000000), (_RETURN, 0, 0, _REFUSE)]
    refused = [*_DENIED.values(), *([] if network else [*_SOCKETS.values(), _SOCKET])]
    for numbers in refused:
        if (number := numbers[column]) is not None:
            steps += _rule(number, (_RETURN, 0, 0, _REFUSE))
    steps += _rule(_CLONE3[column], (_RETURN, 0, 0, _ABSENT))  # its flags are in memory: callers fall back on clone
    steps += _rule(_CLONE[column], _argument(0), (_ANY, 0, 1, _NEW_NAMESPACES), *_refuse_else_allow())
    kind = (_argument(1), (_AND, 0, 0, 0xF), (_EQUAL, 1, 0, _STREAM))  # a datagram pair could be sent to any name
    steps += _rule(_SOCKETPAIR[column], *kind, *_refuse_else_allow())
    if network:
        family = (_argument(0), (_EQUAL, 2, 0, _INET), (_EQUAL, 1, 0, _INET6))
        steps += _rule(_SOCKET[column], *family, *_refuse_else_allow())
    for x86, arm, refused_values in _NOT_ON_INIT.values():
        tests = [
            step
            for at, value in refused_values
            for step in (_argument(at), (_EQUAL, 0, 1, value), _refuse_else_allow()[0])
        ]
        steps += _rule((x86, arm)[column], *tests, _refuse_else_allow()[1])
    return [*steps, (_RETURN, 0, 0, _ALLOW)]


def _rule(number: int, *then: Step) -> list[Step]:
    """Steps for one system call, which end the filter; other calls pass them by."""
    return [(_EQUAL, 0, len(then), number), *then]


def _argument(place: int) -> Step:
    """Load the low half of an argument."""
    return (_LOAD, 0, 0, 16 + 8 * place)


def _refuse_else_allow() -> tuple[Step, Step]:
    """The two ends of a rule: a test before them falls through to the refusal or jumps over it."""
    return (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)
