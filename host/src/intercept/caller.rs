//! The notified thread and its process: what we read of them, once.
//!
//! Everything comes from `/proc`, through a descriptor that was opened before the workload could mount anything over it.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{Mode, fstatat};

use crate::event::Subject;
use crate::intercept::callers::Moment;
use crate::intercept::path::View;
use crate::sys::attributes::Attributes;
use crate::sys::credentials::Identity;
use crate::sys::pidfd::{self, Target};
use crate::sys::{memory, process};

/// What an id is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdKind {
    /// A user.
    User,
    /// A group.
    Group,
}

/// Descriptors of a thread, which stay its own: when it is gone they answer with errors, whoever has its number then.
#[derive(Debug)]
pub(super) struct Thread {
    directory: OwnedFd,
    /// The process (or, from Linux 6.9, the very thread).
    pidfd: OwnedFd,
    /// Whether `pidfd` is the thread's own: of the thread itself, or the thread leads its process.
    exact: bool,
    /// The memory that it had when this was opened: after an exec it has another, and this one may still be somebody
    /// else's.
    memory: OnceLock<fs::File>,
    executable: Mutex<Option<Arc<Executable>>>,
}

/// A file that a process was seen to run, and by what it would be noticed that one runs something else.
#[derive(Debug)]
struct Executable {
    seen: Seen,
    name: String,
}

/// What can be seen of an executable without opening it: what the kernel calls it, which it is, and when it was changed.
#[derive(Debug, PartialEq, Eq)]
struct Seen {
    link: OsString,
    device: u64,
    inode: u64,
    changed_ns: i64,
}

/// Executables that were seen lately.
#[derive(Debug, Default)]
pub struct Executables(Mutex<VecDeque<Arc<Executable>>>);

/// The thread behind a notification.
#[derive(Debug)]
pub struct Caller {
    /// Thread id, in our pid namespace.
    pub tid: u32,
    /// Thread group id.
    pub pid: u32,
    who: OnceLock<Who>,
    subject: OnceLock<Subject>,
    thread: Arc<Thread>,
    memory: OnceLock<fs::File>,
    /// Whether it has made no exec since it was looked at first.
    same_memory: bool,
    /// When it was presumed to call.
    pub(super) presumed: Option<Moment>,
    status: OnceLock<Box<Status>>,
    root: OnceLock<OwnedFd>,
    in_our_user_namespace: OnceLock<bool>,
}

/// What may have changed since a thread was looked at last.
#[derive(Debug, Clone, Copy)]
struct Who {
    parent: u32,
    uid: u32,
    gid: u32,
}

impl Thread {
    fn open(view: &View, tid: u32) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = openat(view.proc(), tid.to_string().as_str(), flags, Mode::empty())?;
        let (pidfd, exact) = match pidfd::open(tid, Target::Thread) {
            Ok(pidfd) => (pidfd, true),
            Err(_) => {
                let leader = Status::read(directory.as_fd())?.pid;
                (pidfd::open(leader, Target::Process)?, leader == tid)
            }
        };
        Ok(Self { directory, pidfd, exact, memory: OnceLock::new(), executable: Mutex::default() })
    }

    /// Whether it has ended, and its end has been seen by whoever had to.
    pub(super) fn is_dead(&self) -> bool {
        // Nothing of the directory of a task that is no more can be found (`pid_revalidate`, fs/proc/base.c).
        fstatat(&self.directory, "status", AtFlags::empty()).is_err()
    }
}

impl Caller {
    /// Reads who the thread is.
    ///
    /// # Errors
    /// It is gone, or we may not look at it (ptrace(2), access mode checking).
    pub fn read(view: &View, tid: u32) -> io::Result<Self> {
        let caller = Self::look(view, tid)?;
        caller.memory()?;
        Ok(caller)
    }

    /// The same, of which no memory will be read.
    pub(super) fn look(view: &View, tid: u32) -> io::Result<Self> {
        Self::look_again(tid, Arc::new(Thread::open(view, tid)?), true)
    }

    /// The same of a thread that was looked at before. The kernel is asked through the thread's own descriptors, so that
    /// this fails if it is no more. `same_memory`: it has made no exec since.
    pub(super) fn look_again(tid: u32, thread: Arc<Thread>, same_memory: bool) -> io::Result<Self> {
        let (pid, who, status) = Self::ask(tid, &thread)?;
        let status = status.map_or_else(OnceLock::new, OnceLock::from);
        Ok(Self { status, ..Self::unasked(tid, pid, OnceLock::from(who), thread, same_memory) })
    }

    /// The same, of which nobody has asked yet whether it is there, nor who it is. It has made no exec since it was looked at
    /// first, and its pidfd is its own. `None`: it isn't.
    pub(super) fn presumed(tid: u32, pid: u32, thread: Arc<Thread>, moment: Moment) -> Option<Self> {
        let exact = thread.exact;
        exact.then(|| Self { presumed: Some(moment), ..Self::unasked(tid, pid, OnceLock::new(), thread, true) })
    }

    fn unasked(tid: u32, pid: u32, who: OnceLock<Who>, thread: Arc<Thread>, same_memory: bool) -> Self {
        Self {
            tid,
            pid,
            who,
            subject: OnceLock::new(),
            thread,
            memory: OnceLock::new(),
            same_memory,
            presumed: None,
            status: OnceLock::new(),
            root: OnceLock::new(),
            in_our_user_namespace: OnceLock::new(),
        }
    }

    fn ask(tid: u32, thread: &Thread) -> io::Result<(u32, Who, Option<Box<Status>>)> {
        match pidfd::info(thread.pidfd.as_fd()) {
            Ok(info) if info.tid == tid => {
                Ok((info.pid, Who { parent: info.parent, uid: info.uid, gid: info.gid }, None))
            }
            _ => {
                let status = Status::read(thread.directory.as_fd())?;
                let Identity { uid, gid, .. } = status.identity;
                Ok((status.pid, Who { parent: status.parent, uid, gid }, Some(Box::new(status))))
            }
        }
    }

    /// Whether nobody has asked yet whether it is there.
    pub fn is_presumed(&self) -> bool {
        self.who.get().is_none()
    }

    fn who(&self) -> io::Result<Who> {
        if let Some(who) = self.who.get() {
            return Ok(*who);
        }
        let (_, who, status) = Self::ask(self.tid, &self.thread)?;
        if let Some(status) = status {
            let _ = self.status.set(status);
        }
        Ok(*self.who.get_or_init(|| who))
    }

    /// What `/proc/TID/status` says: read when it is first asked for. While the thread waits for our answer nothing of it
    /// that only the thread itself can change does change.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn status(&self) -> Result<&Status, Errno> {
        if self.status.get().is_none() {
            let errno = |error: io::Error| error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            let _ = self.status.set(Box::new(Status::read(self.directory()).map_err(errno)?));
        }
        self.status.get().map(Box::as_ref).ok_or(Errno::ESRCH)
    }

    /// The process (or, from Linux 6.9, the very thread).
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.thread.pidfd.as_fd()
    }

    /// Its memory, opened if need be.
    pub(super) fn memory(&self) -> io::Result<&fs::File> {
        let place = if self.same_memory { &self.thread.memory } else { &self.memory };
        if place.get().is_none() {
            let memory = openat(self.directory(), "mem", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?;
            let _ = place.set(memory.into());
        }
        place.get().ok_or_else(|| Errno::ESRCH.into())
    }

    pub(super) fn thread(&self) -> &Arc<Thread> {
        &self.thread
    }

    /// Copies bytes of the caller's memory, as many as are there.
    ///
    /// Through `/proc/PID/mem` and not process_vm_readv(2): a page registered with userfaultfd(2) then ends the read
    /// instead of holding the reader.
    pub fn copy_some(&self, address: u64, buffer: &mut [u8]) -> usize {
        let Ok(opened) = self.memory() else { return 0 };
        let mut done = 0;
        while done < buffer.len() {
            match memory::read(opened.as_fd(), &mut buffer[done..], address.wrapping_add(done as u64)) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        done
    }

    /// Copies exactly `length` bytes.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn copy(&self, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut buffer = vec![0; length];
        if self.copy_some(address, &mut buffer) == length { Ok(buffer) } else { Err(Errno::EFAULT) }
    }

    /// Copies a string that ends with NUL, without it.
    ///
    /// # Errors
    /// `EFAULT`; `ENAMETOOLONG` if there is no NUL in `limit` bytes.
    pub fn copy_string(&self, address: u64, limit: usize) -> Result<Vec<u8>, Errno> {
        let mut string = Vec::new();
        let mut at = address;
        while string.len() < limit {
            // Up to the end of the page: the next may not be there, and need not be.
            let room = (4096 - (at % 4096) as usize).min(limit - string.len()).min(512);
            let mut part = [0; 512];
            let got = self.copy_some(at, &mut part[..room]);
            if let Some(end) = part[..got].iter().position(|byte| *byte == 0) {
                string.extend_from_slice(&part[..end]);
                return Ok(string);
            }
            if got < room {
                return Err(Errno::EFAULT);
            }
            string.extend_from_slice(&part[..got]);
            at = at.wrapping_add(got as u64);
        }
        Err(Errno::ENAMETOOLONG)
    }

    /// Writes into the caller's memory, for calls that return something there.
    ///
    /// # Errors
    /// `EFAULT`.
    pub fn write(&self, address: u64, data: &[u8]) -> Result<(), Errno> {
        self.memory().and_then(|memory| memory.write_all_at(data, address)).map_err(|_| Errno::EFAULT)
    }

    /// A copy of one of the caller's descriptors.
    ///
    /// # Errors
    /// `EBADF`: it has no such descriptor. `EPERM`: it has, but before Linux 6.9 we come by those of the process's leader
    /// only, which has ended, or another table. Anything else: we can't tell.
    pub fn descriptor(&self, fd: i32) -> io::Result<OwnedFd> {
        let found = pidfd::duplicate(self.pidfd(), fd);
        if self.thread.exact {
            return found;
        }
        let theirs = Attributes::of(self.handle(fd)?.as_fd())?;
        match found {
            Ok(ours) if Attributes::of(ours.as_fd())?.is_same_file(&theirs) => Ok(ours),
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EBADF | libc::ESRCH)) => Err(error),
            Ok(_) | Err(_) => {
                static SAID: Once = Once::new();
                SAID.call_once(|| {
                    tracing::warn!(
                        "network calls of threads whose leader has ended, or has other descriptors, are refused: before \
                         Linux 6.9 their sockets are out of reach"
                    );
                });
                Err(Errno::EPERM.into())
            }
        }
    }

    /// The file behind one of the caller's descriptors, as an `O_PATH` handle: needs no `pidfd_getfd`.
    ///
    /// # Errors
    /// `EBADF`: it has no such descriptor.
    pub fn handle(&self, fd: i32) -> Result<OwnedFd, Errno> {
        let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
        openat(self.directory(), format!("fd/{fd}").as_str(), flags, Mode::empty()).map_err(|error| match error {
            Errno::ENOENT => Errno::EBADF,
            other => other,
        })
    }

    /// Whether it has a free number for one more descriptor, as far as that can be told without asking for much.
    pub fn has_room_for_a_descriptor(&self) -> bool {
        let Some(limit) = process::descriptor_limit(self.pid) else { return true };
        // How many it has (Linux 6.2; before, 0).
        let open = fstatat(self.directory(), "fd", AtFlags::empty()).map_or(0, |stat| stat.st_size as u64);
        // There are numbers above the limit if that was lowered.
        open < limit
            || self.descriptors().is_none_or(|numbers| (numbers.filter(|fd| *fd < limit).count() as u64) < limit)
    }

    fn descriptors(&self) -> Option<impl Iterator<Item = u64>> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = Dir::openat(self.directory(), "fd", flags, Mode::empty()).ok()?;
        Some(directory.into_iter().filter_map(|entry| entry.ok()?.file_name().to_str().ok()?.parse().ok()))
    }

    /// Which users (or groups) of our user namespace the caller means by these ids.
    ///
    /// # Errors
    /// `EINVAL`: an id that its own namespace does not know, as the kernel would answer. Anything else: we can't tell.
    pub fn known_to_us(&self, view: &View, kind: IdKind, ids: &[u32]) -> Result<Vec<u32>, Errno> {
        if self.in_our_user_namespace(view)? {
            return Ok(ids.to_vec());
        }
        let name = match kind {
            IdKind::User => "uid_map",
            IdKind::Group => "gid_map",
        };
        // What a reader in another namespace sees there are the ids of its own (user_namespaces(7)). A map is written once.
        let map = openat(self.directory(), name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        let map = io::read_to_string(fs::File::from(map)).map_err(|_| Errno::EPERM)?;
        let ranges: Vec<[u32; 3]> = map
            .lines()
            .filter_map(|line| {
                let mut numbers = line.split_whitespace().map_while(|number| number.parse().ok());
                Some([numbers.next()?, numbers.next()?, numbers.next()?])
            })
            .collect();
        ids.iter()
            .map(|id| {
                let found = ranges.iter().find(|[inner, _, count]| id.checked_sub(*inner).is_some_and(|n| n < *count));
                found.map(|[inner, ours, _]| ours.saturating_add(id - inner)).ok_or(Errno::EINVAL)
            })
            .collect()
    }

    fn in_our_user_namespace(&self, view: &View) -> Result<bool, Errno> {
        if let Some(known) = self.in_our_user_namespace.get() {
            return Ok(*known);
        }
        let same = match (readlinkat(self.directory(), "ns/user"), view.user_namespace()) {
            (Ok(theirs), Some(ours)) => theirs == *ours,
            // A kernel without user namespaces has no such link.
            (Err(Errno::ENOENT), None) => true,
            _ => return Err(Errno::EPERM),
        };
        Ok(*self.in_our_user_namespace.get_or_init(|| same))
    }

    /// Who it is to permission checks in our user namespace. Whoever makes a user namespace has all capabilities, but in
    /// there (user_namespaces(7)): here they are worth nothing.
    ///
    /// # Errors
    /// The thread is gone.
    pub fn identity(&self, view: &View) -> Result<Cow<'_, Identity>, Errno> {
        let identity = &self.status()?.identity;
        if identity.capabilities == 0 || self.in_our_user_namespace(view).unwrap_or(false) {
            return Ok(Cow::Borrowed(identity));
        }
        Ok(Cow::Owned(Identity { capabilities: 0, ..identity.clone() }))
    }

    /// `/proc/TID`.
    pub fn directory(&self) -> BorrowedFd<'_> {
        self.thread.directory.as_fd()
    }

    /// The caller's root directory.
    ///
    /// # Errors
    /// It is gone, or we may not look.
    pub fn root(&self) -> nix::Result<BorrowedFd<'_>> {
        if self.root.get().is_none() {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let _ = self.root.set(openat(self.directory(), "root", flags, Mode::empty())?);
        }
        self.root.get().map(AsFd::as_fd).ok_or(Errno::ESRCH)
    }

    /// The process as plugins see it: found out once, and true if the caller is still there afterwards.
    ///
    /// # Errors
    /// It is gone. Not where this was [asked](Self::is_presumed) before.
    pub fn subject(&self, view: &View) -> io::Result<&Subject> {
        if let Some(known) = self.subject.get() {
            return Ok(known);
        }
        let Who { parent, uid, gid } = self.who()?;
        let subject = Subject { pid: self.pid, tid: self.tid, parent, executable: self.executable(view), uid, gid };
        Ok(self.subject.get_or_init(|| subject))
    }

    /// Whether [`Self::subject`] has been found out.
    pub fn has_subject(&self) -> bool {
        self.subject.get().is_some()
    }

    /// The name of the file that the process runs; the one that was found before if it has made no exec since, or is still
    /// seen to run the same file by the same path.
    fn executable(&self, view: &View) -> String {
        let mut known = self.thread.executable.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.same_memory || known.is_none() {
            *known = view.executables().run_by(view, self.directory(), known.as_ref());
        }
        known.as_ref().map(|known| known.name.clone()).unwrap_or_default()
    }
}

impl Executables {
    const MOST: usize = 64;

    /// What a process runs, if that can be found out; it may be the one that is `expected`.
    fn run_by(
        &self,
        view: &View,
        directory: BorrowedFd<'_>,
        expected: Option<&Arc<Executable>>,
    ) -> Option<Arc<Executable>> {
        let seen = Seen::of(directory)?;
        if let Some(expected) = expected.filter(|expected| expected.seen == seen) {
            return Some(Arc::clone(expected));
        }
        let lately = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lately().iter().find(|known| known.seen == seen) {
            return Some(Arc::clone(known));
        }
        let found = Arc::new(Executable::of(view, directory)?);
        let mut lately = lately();
        lately.truncate(Self::MOST - 1);
        lately.push_front(Arc::clone(&found));
        Some(found)
    }
}

impl Seen {
    fn of(directory: BorrowedFd<'_>) -> Option<Self> {
        let link = readlinkat(directory, "exe").ok()?;
        Attributes::at(directory, c"exe").ok().map(|seen| Self::by(link, seen))
    }

    fn by(link: OsString, Attributes { device, inode, changed_ns, .. }: Attributes) -> Self {
        Self { link, device, inode, changed_ns }
    }
}

impl Executable {
    fn of(view: &View, directory: BorrowedFd<'_>) -> Option<Self> {
        let file = openat(directory, "exe", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()?;
        let link = view.link_of(file.as_fd()).ok()?;
        let (known, name) = view.called(file.as_fd()).ok()?;
        Some(Self { seen: Seen::by(link, known), name })
    }
}

/// What `/proc/TID/status` says (proc_pid_status(5)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// Thread group id.
    pub pid: u32,
    /// Parent's process id.
    pub parent: u32,
    /// Real user id.
    pub real_uid: u32,
    /// Real group id.
    pub real_gid: u32,
    /// All user ids: real, effective, saved, file-system.
    pub uids: Vec<u32>,
    /// All group ids, likewise.
    pub gids: Vec<u32>,
    /// What permission checks look at.
    pub identity: Identity,
    /// File creation mask.
    pub umask: u32,
    /// Process id within the innermost pid namespace.
    pub inner_pid: u32,
    /// Thread id there.
    pub inner_tid: u32,
    /// Number of threads of the process.
    pub threads: u32,
    /// Signals that are pending for the thread or its process and neither blocked nor ignored.
    pub deliverable_signals: u64,
    /// Thread id of the tracer, 0 for none.
    pub tracer: u32,
    /// Signals that the thread blocks.
    pub blocked_signals: u64,
    /// How many seccomp filters it is under (Linux 5.9).
    pub filters: Option<u32>,
    /// Thread ids in each pid namespace from ours inwards.
    pub ids: Vec<u32>,
}

impl Status {
    /// The status of the process or thread that has this number now.
    ///
    /// # Errors
    /// There is none, or it cannot be looked at.
    pub fn of(view: &View, id: u32) -> io::Result<Self> {
        Self::at(view.proc(), &format!("{id}/status")) // one descriptor, where there may be no more
    }

    /// Reads the status of the thread whose `/proc` directory this is.
    ///
    /// # Errors
    /// `ESRCH`, `ENOENT`: it is gone.
    pub fn read(directory: BorrowedFd<'_>) -> io::Result<Self> {
        Self::at(directory, "status")
    }

    fn at(directory: BorrowedFd<'_>, name: &str) -> io::Result<Self> {
        let fd = openat(directory, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        // Not through std's File, which asks for a size that there is none of.
        let mut text = vec![0; 4096];
        let mut length = 0;
        loop {
            if length == text.len() {
                text.resize(2 * length, 0);
            }
            match nix::unistd::read(&fd, &mut text[length..]) {
                Ok(0) => break,
                Ok(n) => length += n,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Self::parse(&String::from_utf8_lossy(&text[..length])))
    }

    fn parse(text: &str) -> Self {
        let mut status = Self::default();
        let (mut pending, mut held_back) = (0, 0);
        for line in text.lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            let numbers = || value.split_whitespace().filter_map(|n| n.parse::<u32>().ok());
            let first = || numbers().next().unwrap_or_default();
            let bits = || u64::from_str_radix(value, 16).unwrap_or_default();
            match key {
                "Tgid" => status.pid = first(),
                "PPid" => status.parent = first(),
                "TracerPid" => status.tracer = first(),
                "Umask" => status.umask = u32::from_str_radix(value, 8).unwrap_or_default(),
                "Uid" => status.uids = numbers().collect(),
                "Gid" => status.gids = numbers().collect(),
                "Groups" => status.identity.groups = numbers().collect(),
                "NStgid" => status.inner_pid = numbers().next_back().unwrap_or_default(),
                "NSpid" => {
                    status.ids = numbers().collect();
                    status.inner_tid = status.ids.last().copied().unwrap_or_default();
                }
                "Seccomp_filters" => status.filters = numbers().next(),
                "Threads" => status.threads = first(),
                "SigPnd" | "ShdPnd" => pending |= bits(),
                "SigBlk" => {
                    status.blocked_signals = bits();
                    held_back |= bits();
                }
                "SigIgn" => held_back |= bits(),
                "CapEff" => status.identity.capabilities = bits(),
                _ => {}
            }
        }
        let id = |ids: &[u32], n: usize| ids.get(n).copied().unwrap_or(u32::MAX);
        (status.real_uid, status.real_gid) = (id(&status.uids, 0), id(&status.gids, 0));
        (status.identity.uid, status.identity.gid) = (id(&status.uids, 1), id(&status.gids, 1));
        status.deliverable_signals = pending & !held_back;
        status
    }
}
