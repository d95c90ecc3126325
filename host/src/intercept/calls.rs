//! The governed system calls: one table, which makes the filter and tells the decoder what a notification is.
//!
//! A call is in the filter because some plugin subscribed to what it does, or because it would be a way around: those are
//! the guard's. Everything else runs at full speed.

use std::collections::BTreeMap;

use seccompiler::{BackendError, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};

use crate::event::{EventKind, EventKinds};

/// What a governed call is to the decoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// execve(2).
    Execve,
    /// execveat(2).
    Execveat,
    /// connect(2).
    Connect,
    /// bind(2).
    Bind,
    /// listen(2).
    Listen,
    /// accept(2) and accept4(2).
    Accept,
    /// sendto(2).
    Sendto,
    /// sendmsg(2).
    Sendmsg,
    /// sendmmsg(2).
    Sendmmsg,
    /// socket(2) and socketpair(2).
    Socket,
    /// getsockopt(2), of an option that connects, or that tells who the peer is.
    Getsockopt,
    /// A change of user or groups whose arguments are numbers.
    Identity(Identity),
    /// setgroups(2).
    Setgroups,
    /// A way around the events.
    Bypass(&'static str),
    /// A call that acts on a task named by its number, and could harm the supervisor.
    Task(&'static str),
    /// Likewise, but the first argument says whether the second is a process, a process group or a user.
    TaskOrMany(&'static str),
    /// pidfd_send_signal(2).
    PidfdSendSignal,
}

impl Call {
    /// The system call's name, for records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Execve => "execve",
            Self::Execveat => "execveat",
            Self::Connect => "connect",
            Self::Bind => "bind",
            Self::Listen => "listen",
            Self::Accept => "accept",
            Self::Sendto => "sendto",
            Self::Sendmsg => "sendmsg",
            Self::Sendmmsg => "sendmmsg",
            Self::Socket => "socket",
            Self::Identity(identity) => identity.name,
            Self::Setgroups => "setgroups",
            Self::Getsockopt => "getsockopt",
            Self::Bypass(name) | Self::Task(name) | Self::TaskOrMany(name) => name,
            Self::PidfdSendSignal => "pidfd_send_signal",
        }
    }
}

/// The calls of [`Call::Identity`]: name, and which of their arguments are user ids and group ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The system call's name.
    pub name: &'static str,
    /// Whether the arguments are user ids (else group ids).
    pub users: bool,
    /// How many there are.
    pub count: usize,
}

/// The supervisor's own processes, for the guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Protected {
    /// The supervisor's process group; `None` where no signal needs to be kept from it: nothing inside a pid namespace can
    /// harm its first process with one (pid_namespaces(7)).
    pub group: Option<u32>,
}

enum When {
    Always,
    /// Argument is not this number (32 bits).
    Not(u8, u64),
    /// Argument is this number (32 bits).
    Is(u8, u64),
    /// Pointer argument is not null.
    Given(u8),
    /// Argument has these flags.
    Flag(u8, u64),
    /// Both of two arguments are these numbers.
    Both((u8, u64), (u8, u64)),
    /// setsockopt(2) of this level and name, with a value: without one, the option is cleared.
    Option(u64, u64),
}

struct Row {
    number: i64,
    call: Call,
    wanted_by: &'static [EventKind],
    when: When,
}

const NETWORK: &[EventKind] =
    &[EventKind::Connect, EventKind::Bind, EventKind::Listen, EventKind::Accept, EventKind::Send, EventKind::Socket];
const PEERS: &[EventKind] = &[EventKind::Connect, EventKind::Listen];
const EXEC: &[EventKind] = &[EventKind::Exec, EventKind::ExecFileless];
const CREDENTIALS: &[EventKind] = &[EventKind::Credentials];
const ANY: &[EventKind] = &EventKind::ALL;
const PR_SET_MM: u64 = libc::PR_SET_MM as u64;
const PR_SET_MM_EXE_FILE: u64 = libc::PR_SET_MM_EXE_FILE as u64;
const PR_SET_MM_MAP: u64 = libc::PR_SET_MM_MAP as u64;
const FASTOPEN: u64 = libc::MSG_FASTOPEN as u64;
const IPPROTO_IP: u64 = libc::IPPROTO_IP as u64;
const IPPROTO_IPV6: u64 = libc::IPPROTO_IPV6 as u64;
const IPPROTO_SCTP: u64 = 132;

/// A descriptor of the peer's process (Linux 6.5; asm-generic/socket.h).
pub const SO_PEERPIDFD: i32 = 77;

const fn row(number: i64, call: Call, wanted_by: &'static [EventKind], when: When) -> Row {
    Row { number, call, wanted_by, when }
}

const fn identity(number: i64, name: &'static str, users: bool, count: usize) -> Row {
    row(number, Call::Identity(Identity { name, users, count }), CREDENTIALS, When::Always)
}

#[rustfmt::skip]
const GOVERNED: &[Row] = &[
    row(libc::SYS_execve, Call::Execve, EXEC, When::Always),
    row(libc::SYS_execveat, Call::Execveat, EXEC, When::Always),
    row(libc::SYS_connect, Call::Connect, &[EventKind::Connect], When::Always),
    row(libc::SYS_bind, Call::Bind, &[EventKind::Bind], When::Always),
    row(libc::SYS_listen, Call::Listen, &[EventKind::Listen], When::Always),
    row(libc::SYS_accept, Call::Accept, &[EventKind::Accept], When::Always),
    row(libc::SYS_accept4, Call::Accept, &[EventKind::Accept], When::Always),
    row(libc::SYS_socket, Call::Socket, &[EventKind::Socket], When::Always),
    row(libc::SYS_socketpair, Call::Socket, &[EventKind::Socket], When::Always),
    row(libc::SYS_sendto, Call::Sendto, &[EventKind::Send], When::Given(4)),
    row(libc::SYS_sendto, Call::Sendto, &[EventKind::Connect], When::Flag(3, FASTOPEN)),
    row(libc::SYS_sendmsg, Call::Sendmsg, &[EventKind::Send], When::Always),
    row(libc::SYS_sendmsg, Call::Sendmsg, &[EventKind::Connect], When::Flag(2, FASTOPEN)),
    row(libc::SYS_sendmmsg, Call::Sendmmsg, &[EventKind::Send], When::Always),
    row(libc::SYS_sendmmsg, Call::Sendmmsg, &[EventKind::Connect], When::Flag(3, FASTOPEN)),
    identity(libc::SYS_setuid, "setuid", true, 1),
    identity(libc::SYS_setreuid, "setreuid", true, 2),
    identity(libc::SYS_setresuid, "setresuid", true, 3),
    identity(libc::SYS_setfsuid, "setfsuid", true, 1),
    identity(libc::SYS_setgid, "setgid", false, 1),
    identity(libc::SYS_setregid, "setregid", false, 2),
    identity(libc::SYS_setresgid, "setresgid", false, 3),
    identity(libc::SYS_setfsgid, "setfsgid", false, 1),
    row(libc::SYS_setgroups, Call::Setgroups, CREDENTIALS, When::Always),
    // Plugins are told what a process runs, as the kernel says: not what it says of itself.
    row(libc::SYS_prctl, Call::Bypass("prctl"), ANY, When::Both((0, PR_SET_MM), (1, PR_SET_MM_EXE_FILE))),
    row(libc::SYS_prctl, Call::Bypass("prctl"), ANY, When::Both((0, PR_SET_MM), (1, PR_SET_MM_MAP))),
    // For a key that is not there the kernel starts /sbin/request-key, if it is told what for (request-key(8)): as root, with
    // all capabilities, under no filter.
    row(libc::SYS_request_key, Call::Bypass("request_key"), ANY, When::Given(2)),
    // A ring does network calls that seccomp never sees.
    row(libc::SYS_io_uring_setup, Call::Bypass("io_uring_setup"), NETWORK, When::Always),
    row(libc::SYS_io_uring_enter, Call::Bypass("io_uring_enter"), NETWORK, When::Always),
    row(libc::SYS_io_uring_register, Call::Bypass("io_uring_register"), NETWORK, When::Always),
    // SCTP binds and connects through socket options: SCTP_SOCKOPT_BINDX_ADD, …_BINDX_REM, …_CONNECTX_OLD, …_CONNECTX.
    row(libc::SYS_setsockopt, Call::Bypass("setsockopt"), NETWORK, When::Both((1, IPPROTO_SCTP), (2, 100))),
    row(libc::SYS_setsockopt, Call::Bypass("setsockopt"), NETWORK, When::Both((1, IPPROTO_SCTP), (2, 101))),
    row(libc::SYS_setsockopt, Call::Bypass("setsockopt"), NETWORK, When::Both((1, IPPROTO_SCTP), (2, 107))),
    row(libc::SYS_setsockopt, Call::Bypass("setsockopt"), NETWORK, When::Both((1, IPPROTO_SCTP), (2, 110))),
    row(libc::SYS_getsockopt, Call::Getsockopt, NETWORK, When::Both((1, IPPROTO_SCTP), (2, 111))),
    // Options that send packets somewhere else first than to the address that was decided on: source routes of IPv4
    // (IP_OPTIONS), routing headers of IPv6 (IPV6_RTHDR, its forms of RFC 2292, and in the options of a flow label).
    row(libc::SYS_setsockopt, Call::Bypass("setsockopt"), NETWORK, When::Option(IPPROTO_IP, 4)),
    row(libc::SYS_setsockopt, Call::Bypass("setsockopt"), NETWORK, When::Option(IPPROTO_IPV6, 57)),
    row(libc::SYS_setsockopt, Call::Bypass("setsockopt"), NETWORK, When::Option(IPPROTO_IPV6, 5)),
    row(libc::SYS_setsockopt, Call::Bypass("setsockopt"), NETWORK, When::Option(IPPROTO_IPV6, 6)),
    row(libc::SYS_setsockopt, Call::Bypass("setsockopt"), NETWORK, When::Option(IPPROTO_IPV6, 32)),
    // Whoever connects or listens through us would be taken for us.
    row(libc::SYS_getsockopt, Call::Getsockopt, PEERS, When::Both((1, libc::SOL_SOCKET as u64), (2, libc::SO_PEERCRED as u64))),
    row(libc::SYS_getsockopt, Call::Getsockopt, PEERS, When::Both((1, libc::SOL_SOCKET as u64), (2, SO_PEERPIDFD as u64))),
];

/// What could end or stop the supervisor, or make it do something.
#[rustfmt::skip]
const SIGNALLING: &[Row] = &[
    row(libc::SYS_kill, Call::Task("kill"), &[], When::Always), // its conditions are made in `rules`
    row(libc::SYS_tkill, Call::Task("tkill"), &[], When::Always),
    row(libc::SYS_tgkill, Call::Task("tgkill"), &[], When::Always),
    row(libc::SYS_rt_sigqueueinfo, Call::Task("rt_sigqueueinfo"), &[], When::Always),
    row(libc::SYS_rt_tgsigqueueinfo, Call::Task("rt_tgsigqueueinfo"), &[], When::Always),
    row(libc::SYS_pidfd_send_signal, Call::PidfdSendSignal, &[], When::Always),
    // F_SETSIG can turn the SIGIO of F_SETOWN into a signal that nobody can block.
    row(libc::SYS_fcntl, Call::Bypass("fcntl"), &[], When::Both((1, F_SETSIG), (2, libc::SIGKILL as u64))),
    row(libc::SYS_fcntl, Call::Bypass("fcntl"), &[], When::Both((1, F_SETSIG), (2, libc::SIGSTOP as u64))),
];

/// What could hold it up or take away what it needs: the kernel lets a process of the same user do that, and does not
/// protect even the first process of a pid namespace from it.
#[rustfmt::skip]
const RESTRAINING: &[Row] = &[
    row(libc::SYS_prlimit64, Call::Task("prlimit64"), &[], When::Not(0, 0)),
    row(libc::SYS_sched_setscheduler, Call::Task("sched_setscheduler"), &[], When::Not(0, 0)),
    row(libc::SYS_sched_setparam, Call::Task("sched_setparam"), &[], When::Not(0, 0)),
    row(libc::SYS_sched_setattr, Call::Task("sched_setattr"), &[], When::Not(0, 0)),
    row(libc::SYS_sched_setaffinity, Call::Task("sched_setaffinity"), &[], When::Not(0, 0)),
    row(libc::SYS_setpriority, Call::TaskOrMany("setpriority"), &[], When::Not(1, 0)),
    row(libc::SYS_setpriority, Call::TaskOrMany("setpriority"), &[], When::Is(0, PRIO_USER)),
    row(libc::SYS_ioprio_set, Call::TaskOrMany("ioprio_set"), &[], When::Not(1, 0)),
    row(libc::SYS_ioprio_set, Call::TaskOrMany("ioprio_set"), &[], When::Is(0, IOPRIO_WHO_USER)),
    row(libc::SYS_migrate_pages, Call::Task("migrate_pages"), &[], When::Not(0, 0)),
    row(libc::SYS_move_pages, Call::Task("move_pages"), &[], When::Not(0, 0)),
    row(libc::SYS_ptrace, Call::Task("ptrace"), &[], When::Is(0, libc::PTRACE_ATTACH as u64)),
    row(libc::SYS_ptrace, Call::Task("ptrace"), &[], When::Is(0, libc::PTRACE_SEIZE as u64)),
];

/// fcntl(2): the signal that is sent when I/O is possible.
const F_SETSIG: u64 = 10;
/// setpriority(2), ioprio_set(2): every process of a user.
pub const PRIO_USER: u64 = libc::PRIO_USER as u64;
const IOPRIO_WHO_USER: u64 = 3;

/// What this number is, if it is a call that we may have been notified of.
pub fn call(number: i32) -> Option<Call> {
    GOVERNED.iter().chain(SIGNALLING).chain(RESTRAINING).find(|row| row.number == i64::from(number)).map(|row| row.call)
}

/// The rules of the filter for these subscriptions.
///
/// # Errors
/// seccompiler's, for a mistake in the tables above.
pub fn rules(
    wanted: EventKinds,
    protected: Option<Protected>,
) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let mut conditions: BTreeMap<i64, Alternatives> = BTreeMap::new();
    for row in GOVERNED.iter().filter(|row| row.wanted_by.iter().any(|kind| wanted.contains(*kind))) {
        conditions.entry(row.number).or_default().push(row.when.conditions()?);
    }
    if let Some(protected) = protected {
        for row in RESTRAINING {
            conditions.entry(row.number).or_default().push(row.when.conditions()?);
        }
        let Some(group) = protected.group else { return assembled(conditions) };
        for row in SIGNALLING {
            let entry = conditions.entry(row.number).or_default();
            match row.number {
                libc::SYS_kill => {
                    // One process by its number; everything (-1); the supervisor's group.
                    entry.push(vec![dword(0, SeccompCmpOp::Gt, 0)?, dword(0, SeccompCmpOp::Lt, 1 << 31)?]);
                    entry.push(vec![dword(0, SeccompCmpOp::Eq, u64::from(u32::MAX))?]);
                    entry.push(vec![dword(0, SeccompCmpOp::Eq, u64::from(group.wrapping_neg()))?]);
                }
                _ => entry.push(row.when.conditions()?),
            }
        }
    }
    assembled(conditions)
}

type Alternatives = Vec<Vec<SeccompCondition>>;

fn assembled(conditions: BTreeMap<i64, Alternatives>) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    conditions
        .into_iter()
        .map(|(number, alternatives)| {
            // Notified of in any case: further conditions say nothing.
            if alternatives.iter().any(Vec::is_empty) {
                return Ok((number, Vec::new()));
            }
            Ok((number, alternatives.into_iter().map(SeccompRule::new).collect::<Result<_, _>>()?))
        })
        .collect()
}

impl When {
    fn conditions(&self) -> Result<Vec<SeccompCondition>, BackendError> {
        Ok(match *self {
            Self::Always => vec![],
            Self::Not(argument, value) => vec![dword(argument, SeccompCmpOp::Ne, value)?],
            Self::Is(argument, value) => vec![dword(argument, SeccompCmpOp::Eq, value)?],
            Self::Given(argument) => {
                vec![SeccompCondition::new(argument, SeccompCmpArgLen::Qword, SeccompCmpOp::Ne, 0)?]
            }
            Self::Flag(argument, flag) => vec![dword(argument, SeccompCmpOp::MaskedEq(flag), flag)?],
            Self::Option(level, name) => vec![
                dword(1, SeccompCmpOp::Eq, level)?,
                dword(2, SeccompCmpOp::Eq, name)?,
                dword(4, SeccompCmpOp::Ne, 0)?,
            ],
            Self::Both((a, x), (b, y)) => vec![dword(a, SeccompCmpOp::Eq, x)?, dword(b, SeccompCmpOp::Eq, y)?],
        })
    }
}

fn dword(argument: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompCondition, BackendError> {
    SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_nobody_subscribed_to_is_not_in_the_filter() {
        assert!(rules(EventKinds::NONE, None).unwrap().is_empty());
        let exec_only = rules(EventKinds::NONE.with(EventKind::Exec), None).unwrap();
        let expected: BTreeSet<i64> =
            [libc::SYS_execve, libc::SYS_execveat, libc::SYS_prctl, libc::SYS_request_key].into();
        assert_eq!(exec_only.into_keys().collect::<BTreeSet<_>>(), expected);
    }

    #[test]
    fn every_kind_of_event_has_a_call_that_brings_it() {
        for kind in EventKind::ALL {
            assert!(!rules(EventKinds::NONE.with(kind), None).unwrap().is_empty(), "{kind}");
        }
    }

    #[test]
    fn every_call_of_the_filter_is_known_to_the_decoder() {
        let all = EventKind::ALL.into_iter().collect();
        for number in rules(all, Some(Protected { group: Some(7) })).unwrap().into_keys() {
            assert!(call(number as i32).is_some(), "{number}");
        }
    }
}
