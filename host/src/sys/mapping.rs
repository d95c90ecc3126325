//! Which files are mapped, as proc_pid_maps(5) tells it.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::stat::makedev;

/// A file that is mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapped {
    /// Where the mapping begins.
    pub start: u64,
    /// Device number, as `maps` has it.
    pub device: u64,
    /// Inode number, likewise.
    pub inode: u64,
}

/// The mapped files of which this is `/proc/PID/maps`.
///
/// # Errors
/// It cannot be read.
pub fn files(maps: &File) -> io::Result<Vec<Mapped>> {
    // In half of the time that the kernel takes to write the text (Linux 6.11).
    match queried(maps) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
            Ok(lines(&text(maps)?).map(|line| line.0).collect())
        }
        found => found,
    }
}

/// What the kernel calls the file of a mapping that begins here; an empty string if there is none.
pub fn path(maps: &File, start: u64) -> String {
    let text = text(maps).unwrap_or_default();
    lines(&text).find(|(mapped, _)| mapped.start == start).map_or("", |(_, path)| path).to_owned()
}

fn lines(text: &str) -> impl Iterator<Item = (Mapped, &str)> {
    text.lines().filter_map(|line| {
        // Address range, permissions, offset, device, inode, path.
        let mut fields = line.split_ascii_whitespace();
        let number = |hex| u64::from_str_radix(hex, 16).ok();
        let start = number(fields.next()?.split_once('-')?.0)?;
        let (major, minor) = fields.nth(2)?.split_once(':')?;
        let device = makedev(number(major)?, number(minor)?);
        let inode = fields.next()?.parse().ok().filter(|inode| *inode != 0)?;
        Some((Mapped { start, device, inode }, line.find('/').map_or("", |at| &line[at..])))
    })
}

fn text(maps: &File) -> io::Result<String> {
    let mut text = vec![0; 4096];
    let mut length = 0;
    loop {
        if length == text.len() {
            text.resize(2 * length, 0);
        }
        match nix::sys::uio::pread(maps, &mut text[length..], length as i64) {
            Ok(0) => break,
            Ok(n) => length += n,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    text.truncate(length);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// `struct procmap_query` (include/uapi/linux/fs.h).
#[repr(C)]
#[derive(Debug, Default)]
struct Query {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    permissions: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

mod ioctls {
    nix::ioctl_readwrite!(procmap_query, b'f', 17, super::Query);
}

/// Asks for one mapping after the other.
///
/// # Errors
/// `ENOTTY` before Linux 6.11.
fn queried(maps: &File) -> io::Result<Vec<Mapped>> {
    /// `PROCMAP_QUERY_COVERING_OR_NEXT_VMA`, `PROCMAP_QUERY_FILE_BACKED_VMA`.
    const NEXT_OF_A_FILE: u64 = 0x10 | 0x20;
    let mut found = Vec::new();
    let mut address = 0;
    loop {
        let mut query = Query { size: size_of::<Query>() as u64, flags: NEXT_OF_A_FILE, address, ..Query::default() };
        // SAFETY: the kernel reads and writes one `Query`, whose size it is told; the addresses of buffers in it are 0, for none.
        match unsafe { ioctls::procmap_query(maps.as_raw_fd(), &raw mut query) } {
            Ok(_) => {}
            Err(Errno::ENOENT) => return Ok(found),
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        let device = makedev(query.major.into(), query.minor.into());
        found.push(Mapped { start: query.start, device, inode: query.inode });
        address = query.end;
    }
}

/// How a mapping of this file is shown. It is mapped for the purpose, and found in our own `maps`.
///
/// # Errors
/// It cannot be mapped.
pub fn of(file: BorrowedFd<'_>, own_maps: &File) -> io::Result<Mapped> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_is_asked_for_is_what_its_text_says() {
        let maps = File::open("/proc/self/maps").unwrap();
        let executable = std::env::current_exe().unwrap();
        // Other tests of this process may map files meanwhile.
        let text: Vec<Mapped> = {
            let text = text(&maps).unwrap();
            let ours = |(_, path): &(Mapped, &str)| *path == executable.to_string_lossy();
            lines(&text).filter(ours).map(|line| line.0).collect()
        };
        assert!(!text.is_empty());
        assert_eq!(path(&maps, text[0].start), executable.to_string_lossy());
        match queried(&maps) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {} // an older kernel
            found => {
                let file = (text[0].device, text[0].inode);
                let found = found.unwrap().into_iter().filter(|mapped| (mapped.device, mapped.inode) == file);
                assert_eq!(found.collect::<Vec<_>>(), text);
            }
        }
    }
}
