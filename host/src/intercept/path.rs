//! From a path in the caller's view to the file it names, and from a file to a name that policies can trust.
//!
//! A path means what it means to the caller: its root, its working directory, its mounts, its `/proc/self`. The walk ends
//! with a descriptor, which nobody can turn into another file by renaming, linking or mounting; what the file is *called*
//! is then found out from the supervisor's own view, which nobody inside can change.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, readlinkat};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};

use crate::event::File;
use crate::intercept::caller::Caller;

/// The supervisor's own root, mounts and `/proc`, as they were at the start.
#[derive(Debug)]
pub struct View {
    root: OwnedFd,
    proc: OwnedFd,
    proc_device: u64,
    /// What the kernel calls our root from within the workload's mounts: `/`, or where we were chrooted to.
    prefix: PathBuf,
}

/// Inode number of the root of every procfs (`PROC_ROOT_INO`, fs/proc/internal.h).
const PROC_ROOT_INODE: u64 = 1;
/// `MAXSYMLINKS` (include/linux/namei.h).
const MAX_LINKS: usize = 40;
const HANDLE: OFlag = OFlag::O_PATH.union(OFlag::O_CLOEXEC);

impl View {
    /// Keeps `root` and `proc` as the view. `outer_root` is the same root, opened before the supervisor got mounts of its
    /// own.
    ///
    /// # Errors
    /// `proc` is no procfs.
    pub fn new(root: OwnedFd, proc: OwnedFd, outer_root: BorrowedFd<'_>) -> nix::Result<Self> {
        if fstatfs(&proc)?.filesystem_type() != PROC_SUPER_MAGIC {
            return Err(Errno::ENODEV);
        }
        let proc_device = fstat(&proc)?.st_dev;
        let mut view = Self { root, proc, proc_device, prefix: PathBuf::from("/") };
        view.prefix = PathBuf::from(view.link_of(outer_root)?);
        Ok(view)
    }

    /// `/proc`.
    pub fn proc(&self) -> BorrowedFd<'_> {
        self.proc.as_fd()
    }

    /// What a file is called, and which it is.
    pub fn name(&self, file: BorrowedFd<'_>) -> File {
        let Ok(stat) = fstat(file) else { return File::default() };
        let outer = self.link_of(file).unwrap_or_default();
        let mut named = File {
            path: outer.to_string_lossy().into_owned(),
            canonical: false,
            device: stat.st_dev,
            inode: stat.st_ino,
            uid: stat.st_uid,
            gid: stat.st_gid,
            mode: stat.st_mode,
            size: stat.st_size as u64,
            changed_ns: stat.st_ctime.saturating_mul(1_000_000_000).saturating_add(stat.st_ctime_nsec),
        };
        if outer.to_str().is_none() {
            return named; // a name that cannot be written down as it is must not pass for another
        }
        // In a mount namespace of our own the kernel names files from the root of the workload's; without one, from ours.
        for candidate in [Path::new(&outer).strip_prefix(&self.prefix), Path::new(&outer).strip_prefix("/")] {
            let Ok(inner) = candidate else { continue };
            let how = OpenHow::new()
                .flags(HANDLE | OFlag::O_NOFOLLOW)
                .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
            let inner = if inner.as_os_str().is_empty() { Path::new(".") } else { inner };
            let Ok(found) = openat2(&self.root, inner, how) else { continue };
            if fstat(&found).is_ok_and(|other| same_file(&stat, &other)) {
                named.path = Path::new("/").join(inner).to_string_lossy().into_owned();
                named.canonical = true;
                break;
            }
        }
        named
    }

    /// What the kernel calls an open file.
    pub fn link_of(&self, file: BorrowedFd<'_>) -> nix::Result<OsString> {
        use std::os::fd::AsRawFd;
        readlinkat(&self.proc, format!("self/fd/{}", file.as_raw_fd()).as_str())
    }

    /// Opens what an `O_PATH` descriptor stands for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn reopen(&self, file: BorrowedFd<'_>, flags: OFlag) -> nix::Result<OwnedFd> {
        use std::os::fd::AsRawFd;
        openat(&self.proc, format!("self/fd/{}", file.as_raw_fd()).as_str(), flags | OFlag::O_CLOEXEC, Mode::empty())
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
    /// # Errors
    /// What the kernel would answer.
    pub fn resolve(&self, caller: &Caller, base: OwnedFd, path: &[u8], follow_last: bool) -> nix::Result<OwnedFd> {
        Ok(self.walk(caller, base, path, follow_last)?.0)
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
            self.walk(caller, base, parent.as_os_str().as_bytes(), true)?.0
        };
        Ok((parent, name.to_owned()))
    }

    fn walk(&self, caller: &Caller, base: OwnedFd, path: &[u8], follow_last: bool) -> nix::Result<(OwnedFd, FileStat)> {
        if path.is_empty() {
            return Err(Errno::ENOENT);
        }
        let root = self.caller_directory(caller, "root")?;
        let root_stat = fstat(&root)?;
        let mut current = base;
        let mut todo: Vec<Vec<u8>> = Vec::new();
        push_components(&mut todo, path);
        if path.starts_with(b"/") {
            current = root.try_clone().map_err(|_| Errno::EMFILE)?;
        }
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
                b"self" if in_proc => self.pid_in(&stat, caller).to_string().into_bytes(),
                b"thread-self" if in_proc => {
                    format!("{0}/task/{1}", self.pid_in(&stat, caller), self.tid_in(&stat, caller)).into_bytes()
                }
                _ => readlinkat(&next, "")?.into_vec(),
            };
            if target.starts_with(b"/") {
                current = root.try_clone().map_err(|_| Errno::EMFILE)?;
                stat = root_stat;
            }
            push_components(&mut todo, &target);
        }
        Ok((current, stat))
    }

    /// The caller's process id in the pid namespace that a procfs shows: ours, or else (a procfs that was mounted
    /// later) the caller's own.
    fn pid_in(&self, proc: &FileStat, caller: &Caller) -> u32 {
        if proc.st_dev == self.proc_device { caller.status.pid } else { caller.status.inner_pid }
    }

    fn tid_in(&self, proc: &FileStat, caller: &Caller) -> u32 {
        if proc.st_dev == self.proc_device { caller.tid } else { caller.status.inner_pid }
    }
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
