//! What a process costs.

use std::{fs, io};

/// The proportional share of memory of a process, in bytes (`/proc/PID/smaps_rollup`, proc(5)). Blocks.
pub fn pss(pid: u32) -> io::Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:")?.split_whitespace().next()?.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_a_share_of_memory() {
        assert!(pss(std::process::id()).unwrap() > 1 << 12);
        assert!(pss(0).is_err());
    }
}
