//! A disk that starts Linux from the BIOS, without partitions and without a filesystem: our boot
//! sector, then the kernel and its initramfs, sector after sector.
//!
//! The boot sector decides nothing. The setup header of the kernel (Documentation/arch/x86/boot.rst)
//! is filled in here, and so is the table of what is read where.

use crate::error::{Error, Result};

const SECTOR: usize = 512;
/// Where the 16-bit setup code, its heap, its stack and the command line live: 0x90000, up to the
/// BIOS's own data below 640 KiB.
const SETUP: u32 = 0x90000;
const STACK: usize = 0xe000;
const CMDLINE: usize = 0xe000;
const CMDLINE_MAX: usize = 2048;
/// Where the protected-mode kernel is loaded; it moves itself from there.
const KERNEL: u32 = 0x0010_0000;
/// Where the table begins in the boot sector (`mbr.S`), and how many parts fit.
const TABLE: usize = 380;
const PARTS: usize = 3;

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(include_str!("mbr.S"));

/// The first 440 bytes of the disk.
#[cfg(target_arch = "x86_64")]
fn boot_code() -> Result<[u8; 440]> {
    unsafe extern "C" {
        safe static stackproof_mbr: [u8; 440];
    }
    Ok(stackproof_mbr)
}

#[cfg(not(target_arch = "x86_64"))]
fn boot_code() -> Result<[u8; 440]> {
    Err(Error::host("a boot sector for x86-64 can only be made on x86-64"))
}

/// Fields of the setup header, by their offsets.
mod field {
    pub const SETUP_SECTORS: usize = 0x1f1;
    pub const VIDEO_MODE: usize = 0x1fa;
    pub const MAGIC: usize = 0x202;
    pub const VERSION: usize = 0x206;
    pub const LOADER: usize = 0x210;
    pub const FLAGS: usize = 0x211;
    pub const INITRD_ADDRESS: usize = 0x218;
    pub const INITRD_SIZE: usize = 0x21c;
    pub const HEAP_END: usize = 0x224;
    pub const CMDLINE: usize = 0x228;
    pub const INITRD_MAX: usize = 0x22c;
    pub const PREFERRED: usize = 0x258;
    pub const INIT_SIZE: usize = 0x260;
    pub const END: usize = 0x268;
}

/// The disk as bytes, a multiple of 1 MiB long.
pub fn boot_disk(kernel: &[u8], initrd: &[u8], cmdline: &str) -> Result<Vec<u8>> {
    let (setup, rest, initrd_at) = prepare(kernel, initrd, cmdline)?;
    let mut disk = vec![0; SECTOR];
    disk[..440].copy_from_slice(&boot_code()?);
    let parts: [(&[u8], u32); PARTS] = [(&setup, SETUP), (rest, KERNEL), (initrd, initrd_at)];
    for (i, (bytes, address)) in parts.iter().enumerate() {
        let first = sectors(disk.len());
        disk.extend_from_slice(bytes);
        disk.resize(disk.len().next_multiple_of(SECTOR), 0);
        let count = sectors(disk.len()) - first;
        for (j, word) in [first, count, *address].into_iter().enumerate() {
            put(&mut disk, TABLE + i * 12 + j * 4, &word.to_le_bytes());
        }
    }
    // One partition without a filesystem, so that no tool takes the disk for an empty one.
    let end = disk.len().next_multiple_of(1 << 20);
    disk.resize(end, 0);
    put(&mut disk, 446, &[0x80, 0, 2, 0, 0xda, 0xfe, 0xff, 0xff]);
    put(&mut disk, 454, &1u32.to_le_bytes());
    put(&mut disk, 458, &(sectors(end) - 1).to_le_bytes());
    put(&mut disk, 510, &[0x55, 0xaa]);
    Ok(disk)
}

/// The setup part with its header filled in and the command line behind it, the protected-mode
/// part, and the address of the initramfs.
fn prepare<'a>(kernel: &'a [u8], initrd: &[u8], cmdline: &str) -> Result<(Vec<u8>, &'a [u8], u32)> {
    let bad = |what: &str| Error::image(format!("the kernel cannot be put on a disk: {what}"));
    if kernel.len() < field::END || &kernel[field::MAGIC..field::MAGIC + 4] != b"HdrS" {
        return Err(bad("it is no bzImage"));
    }
    if u16::from_le_bytes([kernel[field::VERSION], kernel[field::VERSION + 1]]) < 0x020a {
        return Err(bad("its boot protocol is older than 2.10"));
    }
    let setup_size = match usize::from(kernel[field::SETUP_SECTORS]) {
        0 => 5,
        n => n + 1,
    } * SECTOR;
    if setup_size + 0x1000 > STACK || setup_size >= kernel.len() {
        return Err(bad("its setup code leaves no room for heap and stack"));
    }
    if cmdline.len() >= CMDLINE_MAX || cmdline.contains(['\0', '\n']) {
        return Err(bad("its command line is too long, or of several lines"));
    }
    // Above everything that the kernel needs until it has read the memory map, for it unpacks
    // itself there.
    let word = |at: usize| u32::from_le_bytes(kernel[at..at + 4].try_into().expect("four bytes"));
    let top = u64::from(word(field::PREFERRED)) + u64::from(word(field::INIT_SIZE));
    let initrd_at =
        u32::try_from(top.next_multiple_of(1 << 20)).map_err(|_| bad("it is too big"))?;
    if u64::from(initrd_at) + initrd.len() as u64 > u64::from(word(field::INITRD_MAX)) {
        return Err(bad("there is no room for its initramfs"));
    }

    let mut setup = kernel[..setup_size].to_vec();
    setup.resize(CMDLINE + CMDLINE_MAX, 0);
    put(&mut setup, CMDLINE, cmdline.as_bytes());
    put(&mut setup, field::VIDEO_MODE, &0xffffu16.to_le_bytes());
    setup[field::LOADER] = 0xff;
    setup[field::FLAGS] |= 0x80; // the heap's end is set
    put(&mut setup, field::INITRD_ADDRESS, &initrd_at.to_le_bytes());
    let size = u32::try_from(initrd.len()).map_err(|_| bad("its initramfs is too big"))?;
    put(&mut setup, field::INITRD_SIZE, &size.to_le_bytes());
    put(&mut setup, field::HEAP_END, &((STACK - 0x200) as u16).to_le_bytes());
    put(&mut setup, field::CMDLINE, &(SETUP + CMDLINE as u32).to_le_bytes());
    Ok((setup, &kernel[setup_size..], initrd_at))
}

fn put(bytes: &mut [u8], at: usize, what: &[u8]) {
    bytes[at..at + what.len()].copy_from_slice(what);
}

/// Disks made here are far below the 2 TiB that 32 bits of sectors count.
fn sectors(bytes: usize) -> u32 {
    u32::try_from(bytes / SECTOR).expect("a disk of less than 2 TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel() -> Vec<u8> {
        let mut kernel = vec![0; 5 * SECTOR];
        kernel[field::SETUP_SECTORS] = 4;
        put(&mut kernel, field::MAGIC, b"HdrS");
        put(&mut kernel, field::VERSION, &0x020fu16.to_le_bytes());
        put(&mut kernel, field::INITRD_MAX, &0x7fff_ffffu32.to_le_bytes());
        put(&mut kernel, field::PREFERRED, &0x0100_0000u32.to_le_bytes());
        put(&mut kernel, field::INIT_SIZE, &0x0312_3000u32.to_le_bytes());
        kernel.extend_from_slice(&[b'K'; 1000]);
        kernel
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_table_says_where_each_part_lies_and_goes() {
        let disk = boot_disk(&kernel(), &[b'I'; 700], "quiet").unwrap();
        assert_eq!(disk.len(), 1 << 20);
        assert_eq!(&disk[510..512], [0x55, 0xaa]);
        let part = |i: usize| {
            let at = TABLE + i * 12;
            (word(&disk, at) as usize * SECTOR, word(&disk, at + 4), word(&disk, at + 8))
        };
        let (setup, count, address) = part(0);
        assert_eq!((setup, address), (SECTOR, SETUP));
        assert_eq!(count as usize, (CMDLINE + CMDLINE_MAX) / SECTOR);
        let (rest, count, address) = part(1);
        assert_eq!((&disk[rest..rest + 1000], count, address), (&[b'K'; 1000][..], 2, KERNEL));
        let (initrd, count, address) = part(2);
        assert_eq!((&disk[initrd..initrd + 700], count), (&[b'I'; 700][..], 2));
        assert_eq!(address, 0x0420_0000, "above what the kernel needs, on a MiB");
        assert_eq!(part(3).1, 0, "the table ends");

        let header = &disk[SECTOR..];
        assert_eq!(word(header, field::INITRD_ADDRESS), address);
        assert_eq!(word(header, field::INITRD_SIZE), 700);
        assert_eq!(word(header, field::CMDLINE), 0x9e000);
        assert_eq!(&header[CMDLINE..CMDLINE + 6], b"quiet\0");
    }

    #[test]
    fn the_boot_code_ends_before_its_table() {
        let code = boot_code().unwrap();
        assert_eq!(code[0], 0xfa, "begins with cli");
        assert!(code[TABLE..].iter().all(|b| *b == 0));
        assert!(code[240..280].iter().all(|b| *b == 0), "ends before its data");
        assert_eq!(&code[328..339], b"probe-guest");
        const { assert!(TABLE + (PARTS + 1) * 12 <= 440) };
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let message = |k: &[u8], c: &str| boot_disk(k, &[], c).unwrap_err().to_string();
        assert!(message(b"<html>", "").contains("no bzImage"));
        let mut old = kernel();
        put(&mut old, field::VERSION, &0x0204u16.to_le_bytes());
        assert!(message(&old, "").contains("2.10"));
        assert!(message(&kernel(), &"x".repeat(3000)).contains("command line"));
        let mut cut = kernel();
        cut.truncate(5 * SECTOR);
        assert!(message(&cut, "").contains("setup code"));
    }
}
