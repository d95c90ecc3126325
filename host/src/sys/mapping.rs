//! Which files are mapped, as proc_pid_maps(5) tells it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::makedev;

/// A file that is mapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapped {
    /// Where the mapping begins.
    pub start: u64,
    /// Device number, as `maps` has it.
    pub device: u64,
    /// Inode number, likewise.
    pub inode: u64,
    /// What the kernel calls it.
    pub path: String,
}

impl Mapped {
    fn parse(line: &str) -> Option<Self> {
        // Address range, permissions, offset, device, inode, path.
        let mut fields = line.split_ascii_whitespace();
        let number = |hex| u64::from_str_radix(hex, 16).ok();
        let start = number(fields.next()?.split_once('-')?.0)?;
        let (major, minor) = fields.nth(2)?.split_once(':')?;
        let device = makedev(number(major)?, number(minor)?);
        let inode = fields.next()?.parse().ok().filter(|inode| *inode != 0)?;
        Some(Self { start, device, inode, path: line.find('/').map_or("", |at| &line[at..]).to_owned() })
    }
}

/// The mapped files of which this is `/proc/PID/maps`.
///
/// # Errors
/// It cannot be read.
pub fn files(maps: File) -> io::Result<Vec<Mapped>> {
    let mut text = vec![0; 4096];
    let mut length = 0;
    loop {
        if length == text.len() {
            text.resize(2 * length, 0);
        }
        match nix::unistd::read(&maps, &mut text[length..]) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(String::from_utf8_lossy(&text[..length]).lines().filter_map(Mapped::parse).collect())
}

/// How a mapping of this file is shown. It is mapped for the purpose, and found in our own `maps`.
///
/// # Errors
/// It cannot be mapped.
pub fn of(file: BorrowedFd<'_>, own_maps: File) -> io::Result<Mapped> {
    const LENGTH: usize = 4096;
    // SAFETY: a new mapping, where the kernel likes; nothing refers to it but the call below that takes it away.
    let address =
        unsafe { libc::mmap(std::ptr::null_mut(), LENGTH, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0) };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let found = files(own_maps).map(|files| files.into_iter().find(|mapped| mapped.start == address as u64));
    // SAFETY: the mapping made above, of which there is no pointer left.
    unsafe { libc::munmap(address, LENGTH) };
    found?.ok_or_else(|| io::Error::other("a file that was mapped is not in /proc/self/maps"))
}
