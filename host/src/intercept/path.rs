//! From a path in the caller's view to the file it names, and from a file to a name that policies can trust.
//!
//! A path means what it means to the caller: its root, its working directory, its mounts, its `/proc/self`. The walk ends
//! with a descriptor, which nobody can turn into another file by renaming, linking or mounting; what the file is *called*
//! is then found out from the supervisor's own view, which nobody inside can change.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::event::File;
use crate::intercept::caller::{Caller, Executables, Status};
use crate::sys::attributes::Attributes;
use crate::sys::credentials::{self, Identity};

/// The supervisor's own root, mounts and `/proc`, as they were at the start.
#[derive(Debug)]
pub struct View {
    root: OwnedFd,
    proc: OwnedFd,
    /// Our own descriptors, by their numbers.
    descriptors: OwnedFd,
    proc_device: u64,
    /// What the kernel calls our root from within the workload's mounts: `/`, or where we were chrooted to.
    prefix: PathBuf,
    /// Who we are.
    own: Identity,
    /// Our user namespace, as its link in `/proc` tells it; `None` if the kernel has none.
    user_namespace: Option<OsString>,
    executables: Executables,
}

/// Inode number of the root of every procfs (`PROC_ROOT_INO`, fs/proc/internal.h).
const PROC_ROOT_INODE: u64 = 1;
/// `MAXSYMLINKS` (include/linux/namei.h).
const MAX_LINKS: usize = 40;
const HANDLE: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

/// Whether something has failed because the supervisor, or the machine, has no descriptors or memory left.
pub fn ran_out(errno: Errno) -> bool {
    matches!(errno, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM)
}

impl View {
    /// Keeps `root` and `proc` as the view. `outer_root` is the same root, opened before the supervisor got mounts of its
    /// own.
    ///
    /// # Errors
    /// `proc` is no procfs.
    pub fn new(root: OwnedFd, proc: OwnedFd, outer_root: BorrowedFd<'_>) -> io::Result<Self> {
        if fstatfs(&proc)?.filesystem_type() != PROC_SUPER_MAGIC {
            return Err(Errno::ENODEV.into());
        }
        let proc_device = fstat(&proc)?.st_dev;
        let descriptors = openat(&proc, "self/fd", HANDLE | OFlag::O_DIRECTORY, Mode::empty())?;
        let status = Status::read(openat(&proc, "self", HANDLE, Mode::empty())?.as_fd())?;
        let own = Identity { capabilities: credentials::capability_sets()?.effective, ..status.identity };
        let user_namespace = match readlinkat(&proc, "self/ns/user") {
            Err(Errno::ENOENT) => None,
            link => Some(link?),
        };
        let mut view = Self {
            root,
            proc,
            descriptors,
            proc_device,
            prefix: PathBuf::from("/"),
            own,
            user_namespace,
            executables: Executables::default(),
        };
        view.prefix = PathBuf::from(view.link_of(outer_root)?);
        Ok(view)
    }

    /// `/proc`.
    pub fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    /// Who the supervisor is.
    pub fn own(&self) -> &Identity {
        &self.own
    }

    /// Our user namespace; `None` if the kernel has none.
    pub fn user_namespace(&self) -> Option<&OsString> {
        self.user_namespace.as_ref()
    }

    /// Executables that processes were seen to run.
    pub fn executables(&self) -> &Executables {
        &self.executables
    }

    /// What a file is called, and which it is.
    ///
    /// # Errors
    /// We have [run out](ran_out) of something: then it is not known what the file is called, which is not the same as that
    /// it has no path.
    pub fn name(&self, file: BorrowedFd<'_>) -> Result<File, Errno> {
        let Ok(stat) = fstat(file) else { return Ok(File::default()) };
        let (path, canonical) = self.path_of(file, (stat.st_dev, stat.st_ino))?;
        Ok(File {
            path,
            canonical,
            device: stat.st_dev,
            inode: stat.st_ino,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode,
            size: stat.st_size as u64,
            changed_ns: changed_ns(&stat),
        })
    }

    /// What a file is called, without asking anybody of the workload, who might serve it and never answer. What the path does
    /// not lead to from here is called as the kernel calls a directory that cannot be reached (getcwd(2)), which is no path.
    ///
    /// # Errors
    /// Nothing can be known of it.
    pub fn called(&self, file: BorrowedFd<'_>) -> io::Result<(Attributes, String)> {
        let known = Attributes::of(file)?;
        let (path, canonical) = self.path_of(file, (known.device, known.inode))?;
        Ok((known, if canonical { path } else { format!("(unreachable){path}") }))
    }

    /// The path of a file with this device and inode number, and whether that, looked up here, leads to it.
    fn path_of(&self, file: BorrowedFd<'_>, identity: (u64, u64)) -> Result<(String, bool), Errno> {
        let unless_ran_out = |error: Errno| if ran_out(error) { Err(error) } else { Ok(OsString::new()) };
        let outer = self.link_of(file).or_else(unless_ran_out)?;
        // A name that cannot be written down as it is must not pass for another.
        let Some(text) = outer.to_str() else { return Ok((outer.to_string_lossy().into_owned(), false)) };
        // In a mount namespace of our own the kernel names files from the root of the workload's; without one, from ours.
        for candidate in [Path::new(&outer).strip_prefix(&self.prefix), Path::new(&outer).strip_prefix("/")] {
            let Ok(inner) = candidate else { continue };
            let how = OpenHow::new()
                .flags(HANDLE | OFlag::O_NOFOLLOW)
                .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
            let inner = if inner.as_os_str().is_empty() { Path::new(".") } else { inner };
            let found = match openat2(&self.root, inner, how) {
                Ok(found) => found,
                Err(error) if ran_out(error) => return Err(error),
                Err(_) => continue,
            };
            if fstat(&found).is_ok_and(|other| (other.st_dev, other.st_ino) == identity) {
                return Ok((Path::new("/").join(inner).to_string_lossy().into_owned(), true));
            }
        }
        Ok((text.to_owned(), false))
    }

    /// What the kernel calls an open file.
    pub fn link_of(&self, file: BorrowedFd<'_>) -> nix::Result<OsString> {
        use std::os::fd::AsRawFd;
        readlinkat(&self.descriptors, file.as_raw_fd().to_string().as_str())
    }

    /// Opens what an `O_PATH` descriptor stands for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reopen(&self, file: BorrowedFd<'_>, flags: OFlag) -> nix::Result<OwnedFd> {
        use std::os::fd::AsRawFd;
        let number = file.as_raw_fd().to_string();
        openat(&self.descriptors, number.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
    }

    /// A directory of the caller by which it sees files: `root` or `cwd`.
    ///
    /// # Errors
    /// It is gone, or we may not look.
    pub fn caller_directory(&self, caller: &Caller, name: &str) -> nix::Result<OwnedFd> {
        openat(caller.directory(), name, HANDLE | OFlag::O_DIRECTORY, Mode::empty())
    }

    /// The file that `path` names to the caller, starting at `base` if it is relative.
    ///
    /// What the caller has no right to look up is found all the same: whether it may be run is for the kernel to say. But
    /// an error is the one that the caller would get, so that nobody learns from us what a directory has that it may not
    /// search.
    ///
    /// # Errors
    /// What the kernel would answer.
    pub fn resolve(&self, caller: &Caller, base: impl AsFd, path: &[u8], follow_last: bool) -> nix::Result<OwnedFd> {
        let base = base.as_fd();
        if let Some(found) = self.walk_by_kernel(caller, path, follow_last) {
            return Ok(found);
        }
        self.walk(caller, base, path, follow_last).or_else(|error| {
            let Some(rights) = self.lesser_rights(caller)? else { return Err(error) };
            match credentials::run_as(&self.own, &rights, || self.walk(caller, base, path, follow_last)) {
                Ok(as_caller) => as_caller,
                Err(_) => Err(error),
            }
        })
    }

    /// The caller's identity as far as it decides on paths, if it has fewer rights than we have.
    fn lesser_rights(&self, caller: &Caller) -> nix::Result<Option<Identity>> {
        /// `CAP_DAC_OVERRIDE`, `CAP_DAC_READ_SEARCH` (capabilities(7)).
        const SEARCH_ANYTHING: u64 = 1 << 1 | 1 << 2;
        let theirs = caller.identity(self)?;
        let same = (theirs.uid, theirs.gid, &theirs.groups) == (self.own.uid, self.own.gid, &self.own.groups);
        let capabilities = self.own.capabilities & (!SEARCH_ANYTHING | theirs.capabilities);
        let lesser = !same || capabilities != self.own.capabilities;
        Ok(lesser.then(|| Identity { capabilities, ..theirs.into_owned() }))
    }

    /// The same as [`Self::walk`] where the path meets nothing that means something else to us than to the caller: an
    /// absolute path that leads from the caller's root to no procfs.
    fn walk_by_kernel(&self, caller: &Caller, path: &[u8], follow_last: bool) -> Option<OwnedFd> {
        if !path.starts_with(b"/") {
            return None;
        }
        let root = caller.root().ok()?;
        let flags = if follow_last { HANDLE } else { HANDLE | OFlag::O_NOFOLLOW };
        let how =
            OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let found = openat2(root, Path::new(OsStr::from_bytes(path)), how).ok()?;
        // Only a magic link leads out of a procfs, save the way back by which one came.
        (fstatfs(&found).ok()?.filesystem_type() != PROC_SUPER_MAGIC).then_some(found)
    }

    /// The directory in which `path` names something to the caller, and what it is called there, without following it.
    ///
    /// # Errors
    /// What the kernel would answer; `EADDRINUSE` where the path names a directory itself.
    pub fn resolve_parent(&self, caller: &Caller, base: OwnedFd, path: &[u8]) -> nix::Result<(OwnedFd, OsString)> {
        let path = Path::new(OsStr::from_bytes(path));
        let Some(Component::Normal(name)) = path.components().next_back() else { return Err(Errno::EADDRINUSE) };
        let parent = path.parent().unwrap_or(Path::new(""));
        let parent = if parent.as_os_str().is_empty() {
            base
        } else {
            self.resolve(caller, base, parent.as_os_str().as_bytes(), true)?
        };
        Ok((parent, name.to_owned()))
    }

    fn walk(&self, caller: &Caller, base: BorrowedFd<'_>, path: &[u8], follow_last: bool) -> nix::Result<OwnedFd> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        let clone = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().map_err(|_| Errno::EMFILE);
        let root = caller.root()?;
        let root_stat = fstat(root)?;
        let mut todo: Vec<Vec<u8>> = Vec::new();
        push_components(&mut todo, path);
        let mut current = clone(if path.starts_with(b"/") { root } else { base })?;
        let mut stat = fstat(&current)?;
        let mut links = 0;
        while let Some(component) = todo.pop() {
            if !is_directory(&stat) {
                return Err(Errno::ENOTDIR);
            }
            if component == b"." || component == b".." && same_file(&stat, &root_stat) {
                continue;
            }
            let name = OsStr::from_bytes(&component);
            let next = openat(&current, name, HANDLE | OFlag::O_NOFOLLOW, Mode::empty())?;
            let next_stat = fstat(&next)?;
            // A trailing slash leaves an empty last component, so that this is then not the last one.
            let last = todo.is_empty();
            if !is_link(&next_stat) || last && !follow_last {
                (current, stat) = (next, next_stat);
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::ELOOP);
            }
            let in_proc = fstatfs(&current)?.filesystem_type() == PROC_SUPER_MAGIC;
            if in_proc && stat.st_ino != PROC_ROOT_INODE {
                // A link to an open file, a root, an executable: it leads there by itself, whatever its text says.
                let landed = openat(&current, name, HANDLE, Mode::empty())?;
                stat = fstat(&landed)?;
                current = landed;
                continue;
            }
            let target = match component.as_slice() {
                b"self" if in_proc => self.pid_in(&stat, caller)?.to_string().into_bytes(),
                b"thread-self" if in_proc => {
                    format!("{0}/task/{1}", self.pid_in(&stat, caller)?, self.tid_in(&stat, caller)?).into_bytes()
                }
                _ => readlinkat(&next, "")?.into_vec(),
            };
            if target.starts_with(b"/") {
                current = clone(root)?;
                stat = root_stat;
            }
            push_components(&mut todo, &target);
        }
        Ok(current)
    }

    /// The caller's process id in the pid namespace that a procfs shows: ours, or else (a procfs that was mounted
    /// later) the caller's own.
    fn pid_in(&self, proc: &FileStat, caller: &Caller) -> nix::Result<u32> {
        Ok(if proc.st_dev == self.proc_device { caller.pid } else { caller.status()?.inner_pid })
    }

    fn tid_in(&self, proc: &FileStat, caller: &Caller) -> nix::Result<u32> {
        Ok(if proc.st_dev == self.proc_device { caller.tid } else { caller.status()?.inner_tid })
    }
}

/// Last change of the inode, in nanoseconds since the Unix epoch.
pub fn changed_ns(stat: &FileStat) -> i64 {
    stat.st_ctime.saturating_mul(1_000_000_000).saturating_add(stat.st_ctime_nsec)
}

/// Whether two stats are of one file.
pub fn same_file(one: &FileStat, other: &FileStat) -> bool {
    (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino)
}

fn is_directory(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR
}

fn is_link(stat: &FileStat) -> bool {
    SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFLNK
}

/// Pushes the components of a path so that the first is on top. A trailing slash asks for a directory: a last `.`.
fn push_components(todo: &mut Vec<Vec<u8>>, path: &[u8]) {
    if path.ends_with(b"/") {
        todo.push(b".".to_vec());
    }
    todo.extend(path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()).rev().map(<[u8]>::to_vec));
}
