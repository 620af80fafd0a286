//! A pod's shim is idle nearly all its life, and a node has hundreds of them: memory that is not needed goes back.

use std::{sync::LazyLock, time::Duration};

use tokio::{sync::Notify, time::sleep};

/// How long after the last piece of work memory is given back.
const CALM: Duration = Duration::from_secs(1);
/// Free memory at the heap's end beyond this goes back at once.
const TRIM_THRESHOLD: libc::c_int = 64 << 10;
/// What is larger than this gets pages of its own, which go back when it is freed.
const MMAP_THRESHOLD: libc::c_int = 64 << 10;
/// How much more than needed is taken from the kernel at a time.
const TOP_PAD: libc::c_int = 16 << 10;

static WORKED: LazyLock<Notify> = LazyLock::new(Notify::new);

/// Makes the allocator frugal. Called before the first thread is started.
pub fn be_frugal() {
    let settings = [
        // Threads share one heap: they are few and idle.
        (libc::M_ARENA_MAX, 1),
        (libc::M_TRIM_THRESHOLD, TRIM_THRESHOLD),
        (libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD),
        (libc::M_TOP_PAD, TOP_PAD),
    ];
    for (parameter, value) in settings {
        // SAFETY: mallopt takes two numbers; one that it does not know it ignores.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Says that a piece of work is done that used memory.
pub fn worked() {
    WORKED.notify_one();
}

/// Gives memory back, a moment after work was done.
pub async fn give_back() {
    loop {
        WORKED.notified().await;
        sleep(CALM).await;
        // SAFETY: malloc_trim only looks at the allocator's own free memory, under its lock.
        unsafe { libc::malloc_trim(0) };
        unmap_program();
    }
}

/// Takes the program's own pages out of this process's page table. They are in the page cache and come back, a few
/// at a time, when they are needed: an idle shim needs next to none of them.
fn unmap_program() {
    unsafe extern "C" {
        // The linker's names for the first byte of the program and for the end of its instructions. What it may
        // write to lies beyond.
        #[link_name = "__executable_start"]
        static FIRST: u8;
        #[link_name = "etext"]
        static END: u8;
    }
    let page = rustix::param::page_size();
    let (first, end) = (&raw const FIRST, &raw const END);
    let length = (end.addr() / page * page).saturating_sub(first.addr());
    // SAFETY: the range starts on a page, as programs are loaded, and ends before the page that holds the end of the
    // instructions. It is mapped from the program's file, read-only, so what is dropped is read from there again,
    // even by this very function on its return.
    unsafe { libc::madvise(first.cast_mut().cast(), length, libc::MADV_DONTNEED) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_goes_on_without_its_pages() {
        let resident = || {
            let text = std::fs::read_to_string("/proc/self/statm").unwrap();
            text.split(' ').nth(1).unwrap().parse::<usize>().unwrap()
        };
        let before = resident();
        unmap_program();
        assert!(resident() < before);
    }
}
