//! What is mapped where, as proc_pid_maps(5) tells it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsRawFd, BorrowedFd};

/// The line about the mapping that begins at `address`.
///
/// # Errors
/// There is none, or it cannot be read.
pub fn line_at(maps: File, address: u64) -> io::Result<String> {
    for line in BufReader::new(maps).split(b'\n') {
        let line = line?;
        let start = line.split(|byte| *byte == b'-').next().and_then(|start| std::str::from_utf8(start).ok());
        if start.and_then(|start| u64::from_str_radix(start, 16).ok()) == Some(address) {
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
    }
    Err(io::Error::other(format!("nothing is mapped at {address:#x}")))
}

/// The line about a mapping of this file, which is mapped for the purpose, in our own `maps`.
///
/// # Errors
/// It cannot be mapped.
pub fn line_of(file: BorrowedFd<'_>, own_maps: File) -> io::Result<String> {
    const LENGTH: usize = 4096;
    // SAFETY: a new mapping, where the kernel likes; nothing refers to it but the call below that takes it away.
    let address = unsafe {
        libc::mmap(std::ptr::null_mut(), LENGTH, libc::PROT_READ, libc::MAP_PRIVATE, file.as_raw_fd(), 0)
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let line = line_at(own_maps, address as u64);
    // SAFETY: the mapping made above, of which there is no pointer left.
    unsafe { libc::munmap(address, LENGTH) };
    line
}
