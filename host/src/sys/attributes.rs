//! What the kernel has of a file's attributes by itself, without a word to whoever serves the file system.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::sys::stat::makedev;

/// The attributes that hardly change, or not at all. Of a file that somebody else may have changed meanwhile they are not
/// the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// `st_mode`.
    pub mode: u32,
    /// `st_rdev`.
    pub special: u64,
    /// Last change of the inode, in nanoseconds since the Unix epoch.
    pub changed_ns: i64,
}

impl Attributes {
    /// Those of an open file.
    ///
    /// # Errors
    /// The kernel's. `EACCES`: a file system of another user's, who keeps it to himself.
    pub fn of(file: BorrowedFd<'_>) -> io::Result<Self> {
        Self::at(file, c"")
    }

    /// Those of the file of this name in a directory, which is followed if it is a link.
    ///
    /// fstat(2) would wait for a FUSE server to answer, for as long as it likes. With `AT_STATX_DONT_SYNC` the kernel says what
    /// it knows (`fuse_update_get_attr`, fs/fuse/dir.c; overlayfs hands the flag on).
    ///
    /// # Errors
    /// The kernel's.
    pub fn at(directory: BorrowedFd<'_>, name: &CStr) -> io::Result<Self> {
        let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
        // SAFETY: zero bytes are a valid statx; the kernel writes one, and reads a string that ends with NUL.
        let found = unsafe {
            let mut found: libc::statx = mem::zeroed();
            let fd = directory.as_raw_fd();
            match libc::syscall(libc::SYS_statx, fd, name.as_ptr(), flags, libc::STATX_BASIC_STATS, &raw mut found) {
                0 => found,
                _ => return Err(io::Error::last_os_error()),
            }
        };
        let seconds = found.stx_ctime.tv_sec.saturating_mul(1_000_000_000);
        Ok(Self {
            device: makedev(found.stx_dev_major.into(), found.stx_dev_minor.into()),
            inode: found.stx_ino,
            mode: found.stx_mode.into(),
            special: makedev(found.stx_rdev_major.into(), found.stx_rdev_minor.into()),
            changed_ns: seconds.saturating_add(found.stx_ctime.tv_nsec.into()),
        })
    }

    /// Whether the other ones are of the same file.
    pub fn is_same_file(&self, other: &Self) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}
