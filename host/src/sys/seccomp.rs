//! The filter of the workload: which calls are handed to the supervisor.
//!
//! What the filter is to catch comes from `intercept::calls`; here it becomes a BPF program, by seccompiler, which knows no
//! user notifications: the program is compiled with a `SECCOMP_RET_TRACE` of a number of our own, which is then replaced.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::io;
use std::os::fd::RawFd;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, SeccompRule, TargetArch, sock_filter};

/// A program for `seccomp(2)`.
#[derive(Debug, Clone)]
pub struct Filter(BpfProgram);

/// Stands for "notify" until it is replaced; no such number is used for anything else.
const NOTIFY_TAG: u16 = 0xca11;
const RET: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_GREATER: u16 = (libc::BPF_JMP | libc::BPF_JGT | libc::BPF_K) as u16;

#[cfg(target_arch = "x86_64")]
mod native {
    pub(super) const TARGET: super::TargetArch = super::TargetArch::x86_64;
    /// `AUDIT_ARCH_X86_64`.
    pub(super) const AUDIT: u32 = 0xc000_003e;
}
#[cfg(target_arch = "aarch64")]
mod native {
    pub(super) const TARGET: super::TargetArch = super::TargetArch::aarch64;
    /// `AUDIT_ARCH_AARCH64`.
    pub(super) const AUDIT: u32 = 0xc000_00b7;
}

/// `AUDIT_ARCH_…` of the machine we are built for.
pub const NATIVE_ARCH: u32 = native::AUDIT;

/// The highest system call number whose meaning this build knows (Linux 6.18: `file_setattr`). What a later kernel adds
/// could do a governed thing under a name that we have never heard of, so it is answered with `ENOSYS`, as a kernel without
/// it does. So are the x32 numbers of x86_64, which have bit 30 set.
pub const LAST_KNOWN_CALL: u32 = 469;

impl Filter {
    /// The program that notifies of the calls in `rules` (all of them where the list of conditions is empty), and of every
    /// call through another architecture's entry; everything else passes.
    ///
    /// # Errors
    /// Conditions that seccompiler refuses: a mistake in our own table.
    pub fn new(rules: BTreeMap<i64, Vec<SeccompRule>>) -> Result<Self, seccompiler::BackendError> {
        let compiled: BpfProgram = SeccompFilter::new(
            rules,
            SeccompAction::Allow,
            SeccompAction::Trace(u32::from(NOTIFY_TAG)),
            native::TARGET,
        )?
        .try_into()?;
        let mut program = vec![
            sock_filter { code: LOAD, jt: 0, jf: 0, k: 4 },
            sock_filter { code: JUMP_EQUAL, jt: 0, jf: 3, k: native::AUDIT },
            sock_filter { code: LOAD, jt: 0, jf: 0, k: 0 },
            sock_filter { code: JUMP_GREATER, jt: 0, jf: 1, k: LAST_KNOWN_CALL },
            sock_filter { code: RET, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32 },
        ];
        program.extend(compiled.into_iter().map(|mut instruction| {
            // seccompiler kills what comes through a foreign entry; we want to say in a record that it came.
            let foreign = instruction.k == libc::SECCOMP_RET_KILL_PROCESS;
            let tagged = instruction.k == libc::SECCOMP_RET_TRACE | u32::from(NOTIFY_TAG);
            if instruction.code == RET && (foreign || tagged) {
                instruction.k = libc::SECCOMP_RET_USER_NOTIF;
            }
            instruction
        }));
        Ok(Self(program))
    }

    /// Number of BPF instructions.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none: never.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Puts the calling thread under the filter and returns the listener's descriptor, which is close-on-exec. Sets
    /// `no_new_privs`. Allocates nothing, so that it may be called between clone(2) and execve(2).
    ///
    /// # Errors
    /// `EBUSY`: a filter with a listener is already in force. `EACCES`, `EPERM`: seccomp itself is forbidden here.
    pub fn install(&self, killable: bool) -> io::Result<RawFd> {
        const NEW_LISTENER: libc::c_ulong = 1 << 3;
        const WAIT_KILLABLE_RECV: libc::c_ulong = 1 << 5;
        const SET_MODE_FILTER: libc::c_ulong = 1;
        // SAFETY: takes numbers only.
        if unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let program = libc::sock_fprog { len: self.0.len() as u16, filter: self.0.as_ptr().cast_mut().cast() };
        let flags = NEW_LISTENER | if killable { WAIT_KILLABLE_RECV } else { 0 };
        // SAFETY: `program` describes `self.0`, whose elements have the layout of `sock_filter`; the kernel copies it.
        let fd = unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) };
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(fd as RawFd) }
    }
}

/// Whether the kernel keeps a caller asleep through signals that don't kill it while its notification is being handled
/// (`SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV`, Linux 5.19). Asked with a null program, which fails in either case.
pub fn knows_wait_killable() -> bool {
    const NEW_LISTENER: libc::c_ulong = 1 << 3;
    const WAIT_KILLABLE_RECV: libc::c_ulong = 1 << 5;
    // SAFETY: a null program is refused with EFAULT once the flags have been accepted, with EINVAL if they are not known.
    let result = unsafe { libc::syscall(libc::SYS_seccomp, 1, NEW_LISTENER | WAIT_KILLABLE_RECV, 0_usize) };
    result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// Checks that the kernel's notification structures are no larger than ours.
///
/// # Errors
/// They are, or the kernel has no user notifications (before Linux 5.0).
pub fn check_sizes() -> io::Result<()> {
    const GET_NOTIF_SIZES: libc::c_ulong = 3;
    let mut sizes = libc::seccomp_notif_sizes { seccomp_notif: 0, seccomp_notif_resp: 0, seccomp_data: 0 };
    // SAFETY: the kernel writes one `seccomp_notif_sizes`.
    if unsafe { libc::syscall(libc::SYS_seccomp, GET_NOTIF_SIZES, 0, &raw mut sizes) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let ours = (size_of::<libc::seccomp_notif>(), size_of::<libc::seccomp_notif_resp>());
    if usize::from(sizes.seccomp_notif) > ours.0 || usize::from(sizes.seccomp_notif_resp) > ours.1 {
        return Err(io::Error::other("the kernel's seccomp notifications are larger than this build knows"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_return_of_the_program_is_one_of_ours() {
        let rules = BTreeMap::from([(libc::SYS_execve, vec![]), (libc::SYS_connect, vec![])]);
        let filter = Filter::new(rules).unwrap();
        let returns: Vec<u32> = filter.0.iter().filter(|i| i.code == RET).map(|i| i.k).collect();
        assert!(returns.contains(&libc::SECCOMP_RET_USER_NOTIF));
        for k in returns {
            let known =
                [libc::SECCOMP_RET_USER_NOTIF, libc::SECCOMP_RET_ALLOW, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32];
            assert!(known.contains(&k), "{k:#x}");
        }
    }
}
