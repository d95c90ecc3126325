//! Credentials of one thread. Linux keeps them per thread; the C library's wrappers change those of all, so these are the
//! raw calls.
#![allow(unsafe_code)]

use std::io;

/// Who a thread is, to the permission checks of the kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// Effective (and file-system) user id.
    pub uid: u32,
    /// Effective (and file-system) group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Effective capabilities, as bits.
    pub capabilities: u64,
}

/// Who the supervisor's threads are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Own {
    /// As permission checks see us.
    pub identity: Identity,
    /// Capabilities that we have and the workload was never given, as bits.
    pub withheld: u64,
}

/// capabilities(7).
pub const CAP_SETGID: u64 = 1 << 6;
/// capabilities(7).
pub const CAP_SETUID: u64 = 1 << 7;
/// capabilities(7).
pub const CAP_SYS_PTRACE: u64 = 1 << 19;
/// capabilities(7).
pub const CAP_SYS_ADMIN: u64 = 1 << 21;

impl Own {
    /// Does something with the rights of another, and, for what only we can do, the capabilities in `besides`.
    ///
    /// # Errors
    /// Those of `work`; or we may not become that other.
    pub fn act_as<T>(&self, theirs: &Identity, besides: u64, work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let same = theirs.uid == self.identity.uid
            && theirs.gid == self.identity.gid
            && theirs.groups == self.identity.groups
            && theirs.capabilities == self.identity.capabilities & !self.withheld;
        if same {
            return work();
        }
        let theirs = Identity { capabilities: theirs.capabilities | besides, ..theirs.clone() };
        run_as(&self.identity, &theirs, work)?
    }
}

/// Runs `work` as `identity`, with no more capabilities than we have ourselves, and changes back.
///
/// # Errors
/// Before `work` has run: we may not become `identity`. A failure to change back ends the process: it would go on with
/// somebody else's rights.
pub fn run_as<T>(own: &Identity, identity: &Identity, work: impl FnOnce() -> T) -> io::Result<T> {
    /// Changes back, also when `work` panics.
    struct Back<'a>(&'a Identity, &'a Identity, u64);
    impl Drop for Back<'_> {
        fn drop(&mut self) {
            if leave(self.0, self.1, self.2).is_err() {
                std::process::abort();
            }
        }
    }
    let permitted = capability_sets()?.permitted;
    let _back = Back(own, identity, permitted);
    enter(own, identity, permitted)?;
    Ok(work())
}

fn enter(own: &Identity, identity: &Identity, permitted: u64) -> io::Result<()> {
    if own.groups != identity.groups {
        set_groups(&identity.groups)?;
    }
    if own.gid != identity.gid {
        raw(libc::SYS_setresgid, &[KEEP, u64::from(identity.gid), KEEP])?;
    }
    if own.uid != identity.uid {
        raw(libc::SYS_setresuid, &[KEEP, u64::from(identity.uid), KEEP])?;
    }
    set_effective(permitted, identity.capabilities & permitted)
}

fn leave(own: &Identity, identity: &Identity, permitted: u64) -> io::Result<()> {
    set_effective(permitted, permitted)?;
    if own.uid != identity.uid {
        raw(libc::SYS_setresuid, &[KEEP, u64::from(own.uid), KEEP])?;
    }
    if own.gid != identity.gid {
        raw(libc::SYS_setresgid, &[KEEP, u64::from(own.gid), KEEP])?;
    }
    if own.groups != identity.groups {
        set_groups(&own.groups)?;
    }
    set_effective(permitted, own.capabilities)
}

const KEEP: u64 = u32::MAX as u64;

/// The three capability sets of a thread (capabilities(7)), as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapabilitySets {
    /// What permission checks look at.
    pub effective: u64,
    /// What may be made effective.
    pub permitted: u64,
    /// What an exec may hand on.
    pub inheritable: u64,
}

#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}
const VERSION_3: u32 = 0x2008_0522;

/// The calling thread's capabilities.
///
/// # Errors
/// The kernel's.
pub fn capability_sets() -> io::Result<CapabilitySets> {
    let header = Header { version: VERSION_3, pid: 0 };
    let mut data = [[0_u32; 3]; 2];
    // SAFETY: header and data have the layout of capget(2), version 3: two times effective, permitted, inheritable.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    let join = |set: usize| u64::from(data[0][set]) | u64::from(data[1][set]) << 32;
    Ok(CapabilitySets { effective: join(0), permitted: join(1), inheritable: join(2) })
}

fn set_effective(permitted: u64, effective: u64) -> io::Result<()> {
    let now = capability_sets()?;
    if now.effective == effective {
        return Ok(());
    }
    let header = Header { version: VERSION_3, pid: 0 };
    let split = |bits: u64, high: usize| (bits >> (32 * high)) as u32;
    let half = |high| [split(effective, high), split(permitted, high), split(now.inheritable, high)];
    let data = [half(0), half(1)];
    // SAFETY: as for capget.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })
}

fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length describe `groups`.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
}

fn raw(number: libc::c_long, args: &[u64; 3]) -> io::Result<()> {
    // SAFETY: used for setresuid and setresgid only, which take numbers.
    check(unsafe { libc::syscall(number, args[0], args[1], args[2]) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
