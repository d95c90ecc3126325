//! Reading the memory of others; and pages of our own that the kernel may go on reading when we have forgotten them.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

/// pread64(2): as many bytes as there are from there on. By syscall(2), for the reason that is told in `sys::socket`.
///
/// # Errors
/// The kernel's.
pub fn read(memory: BorrowedFd<'_>, buffer: &mut [u8], address: u64) -> io::Result<usize> {
    // SAFETY: pointer and length describe `buffer`.
    let read =
        unsafe { libc::syscall(libc::SYS_pread64, memory.as_raw_fd(), buffer.as_mut_ptr(), buffer.len(), address) };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}

/// A copy of some bytes in pages of its own. Once it is dropped nobody writes to those pages: who has pinned them
/// (`MSG_ZEROCOPY`) finds in them what was there.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<libc::c_void>,
    length: usize,
}

impl Pages {
    /// Copies `data`.
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn copy_of(data: &[u8]) -> io::Result<Self> {
        let length = data.len().max(1);
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping at a place that the kernel chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        let start = if start == libc::MAP_FAILED { None } else { NonNull::new(start) };
        let start = start.ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the mapping is ours alone and at least as long as `data`.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), start.as_ptr().cast(), data.len()) };
        Ok(Self { start, length: data.len() })
    }
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: the mapping is as long and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `copy_of`, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr(), self.length.max(1)) };
    }
}
