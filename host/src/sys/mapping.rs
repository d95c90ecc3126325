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

/// The mapped files of which this is `/proc/PID/maps`; all, or those that are mapped to be executed.
///
/// # Errors
/// It cannot be read.
pub fn files(maps: &File, to_be: ToBe) -> io::Result<Vec<Mapped>> {
    // In half of the time that the kernel takes to write the text (Linux 6.11).
    match queried(maps, to_be) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
            let text = text(maps)?;
            let lines = lines(&text).filter(|line| to_be == ToBe::Anything || line.executable);
            Ok(lines.map(|line| line.mapped).collect())
        }
        found => found,
    }
}

/// What files are mapped for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ToBe {
    /// To be executed (`PROT_EXEC`), and whatever else.
    Executed,
    /// Whatever.
    Anything,
}

/// What the kernel calls the file of a mapping that begins here; an empty string if there is none.
pub fn path(maps: &File, start: u64) -> String {
    let text = text(maps).unwrap_or_default();
    lines(&text).find(|line| line.mapped.start == start).map_or("", |line| line.path).to_owned()
}

struct Line<'a> {
    mapped: Mapped,
    executable: bool,
    path: &'a str,
}

fn lines(text: &str) -> impl Iterator<Item = Line<'_>> {
    text.lines().filter_map(|line| {
        // Address range, permissions, offset, device, inode, path.
        let mut fields = line.split_ascii_whitespace();
        let number = |hex| u64::from_str_radix(hex, 16).ok();
        let start = number(fields.next()?.split_once('-')?.0)?;
        let executable = fields.next()?.contains('x');
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        let device = makedev(number(major)?, number(minor)?);
        let inode = fields.next()?.parse().ok().filter(|inode| *inode != 0)?;
        let path = line.find('/').map_or("", |at| &line[at..]);
        Some(Line { mapped: Mapped { start, device, inode }, executable, path })
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
fn queried(maps: &File, to_be: ToBe) -> io::Result<Vec<Mapped>> {
    /// `PROCMAP_QUERY_COVERING_OR_NEXT_VMA`, `PROCMAP_QUERY_FILE_BACKED_VMA`.
    const NEXT_OF_A_FILE: u64 = 0x10 | 0x20;
    /// `PROCMAP_QUERY_VMA_EXECUTABLE`.
    const EXECUTABLE: u64 = 0x04;
    let flags = if to_be == ToBe::Executed { NEXT_OF_A_FILE | EXECUTABLE } else { NEXT_OF_A_FILE };
    let mut found = Vec::new();
    let mut address = 0;
    loop {
        let mut query = Query { size: size_of::<Query>() as u64, flags, address, ..Query::default() };
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
    let found =
        files(own_maps, ToBe::Anything).map(|files| files.into_iter().find(|mapped| mapped.start == address as u64));
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
        let text = text(&maps).unwrap();
        let ours: Vec<Line<'_>> = lines(&text).filter(|line| line.path == executable.to_string_lossy()).collect();
        let first = ours[0].mapped;
        assert_eq!(path(&maps, first.start), executable.to_string_lossy());
        let code: Vec<Mapped> = ours.iter().filter(|line| line.executable).map(|line| line.mapped).collect();
        assert!(!code.is_empty() && code.len() < ours.len());
        let all: Vec<Mapped> = ours.iter().map(|line| line.mapped).collect();
        for (to_be, expected) in [(ToBe::Anything, all), (ToBe::Executed, code)] {
            match queried(&maps, to_be) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {} // an older kernel
                found => {
                    let same = |mapped: &Mapped| (mapped.device, mapped.inode) == (first.device, first.inode);
                    assert_eq!(found.unwrap().into_iter().filter(same).collect::<Vec<_>>(), expected);
                }
            }
        }
    }
}
