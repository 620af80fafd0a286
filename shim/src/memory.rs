//! A pod's shim is idle nearly all its life, and a node has hundreds of them: memory that is not needed goes back.

use std::{
    env,
    ffi::{OsStr, OsString},
    os::unix::process::CommandExt as _,
    process::Command,
    sync::LazyLock,
    time::Duration,
};

use tokio::{sync::Notify, time::sleep};

/// How long after the last piece of work memory is given back.
const CALM: Duration = Duration::from_secs(1);
/// Free memory at the heap's end beyond this goes back at once.
const TRIM_THRESHOLD: libc::c_int = 64 << 10;
/// What is larger than this gets pages of its own, which go back when it is freed.
const MMAP_THRESHOLD: libc::c_int = 64 << 10;
/// glibc's settings from outside, `name=value` with colons between them.
const TUNABLES: &str = "GLIBC_TUNABLES";
/// Each thread of glibc's keeps up to seven freed pieces of each of 64 sizes. They never go back, lie scattered, and keep
/// the pages around them: half of the heap of a shim that had many execs at once. Of threads that have ended glibc keeps
/// the stacks, with some pages each.
const NO_CACHE: &str = "glibc.malloc.tcache_count=0:glibc.pthread.stack_cache_size=0";
/// [`TUNABLES`] as they were before this process set them.
const BEFORE: &str = "MOORING_TUNABLES_BEFORE";
/// Pages of the stack that the call itself may need.
const FRAMES: usize = 2;
/// How far below the stack is emptied, in bytes.
const DEEPEST: usize = 256 << 10;
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

/// Has this program run again, in this very process, with an allocator that keeps nothing for itself: it is told so by
/// the environment alone, when it starts. Returns where that is done; also where it cannot be, which costs memory and
/// nothing else. What this process starts is given the environment as it was.
///
/// Called while there is one thread.
pub fn without_cache() {
    let Some(before) = env::var_os(BEFORE) else {
        let given = env::var_os(TUNABLES).unwrap_or_default();
        let mut arguments = env::args_os();
        let mut again = Command::new("/proc/self/exe");
        if let Some(name) = arguments.next() {
            again.arg0(name);
        }
        // Whether it is the second time is not to be seen by what glibc may take away (ld.so(8), secure execution).
        let _failed =
            again.args(arguments).env(TUNABLES, with_ours(&given)).env(BEFORE, given).exec();
        return;
    };
    // SAFETY: nothing else reads or writes the environment, for there is no other thread.
    unsafe {
        env::remove_var(BEFORE);
        if before.is_empty() { env::remove_var(TUNABLES) } else { env::set_var(TUNABLES, before) }
    }
}

/// Of two that are the same the last one counts.
fn with_ours(given: &OsStr) -> OsString {
    let mut all = given.to_owned();
    if !all.is_empty() {
        all.push(":");
    }
    all.push(NO_CACHE);
    all
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
        empty_stack();
        unmap_program();
    }
}

/// Gives back what deeper calls than this one have touched of the stack.
#[inline(never)]
fn empty_stack() {
    let page = rustix::param::page_size();
    let here = 0_u8;
    let end = ((&raw const here).addr() / page).saturating_sub(FRAMES) * page;
    let first = std::ptr::without_provenance_mut(end.saturating_sub(DEEPEST));
    // SAFETY: nothing below the stack pointer and what a call may use beside it is anybody's: what signals put there is
    // gone when this thread goes on. Where the stack does not reach as deep there is nothing, since the kernel keeps a
    // gap below it that is wider than this (stack_guard_gap, 1 MiB).
    unsafe { libc::madvise(first, DEEPEST, libc::MADV_DONTNEED) };
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
    fn settings_of_others_stay() {
        assert_eq!(with_ours(OsStr::new("")), NO_CACHE);
        assert_eq!(with_ours(OsStr::new("a=b:c=d")), *format!("a=b:c=d:{NO_CACHE}"));
    }

    /// Touches a good deal of the stack.
    #[inline(never)]
    fn dive(depth: usize) -> usize {
        let block = std::hint::black_box([depth; 1024]);
        if depth == 0 { block[0] } else { dive(depth - 1) + block[1023] }
    }

    #[test]
    fn what_deep_calls_have_touched_goes_back_and_nothing_else() {
        let own = std::hint::black_box([7_u8; 4096]);
        let deepest = || {
            let here = 0_u8;
            (&raw const here).addr() - (100 << 10)
        };
        // mincore(2) tells of anonymous pages whether they are there.
        let is_there = |address: usize| {
            let page = address / 4096 * 4096;
            let mut seen = 0_u8;
            // SAFETY: a page of this thread's stack, and a byte for the answer.
            let asked = unsafe {
                libc::mincore(std::ptr::without_provenance_mut(page), 4096, &raw mut seen)
            };
            asked == 0 && seen & 1 == 1
        };
        assert!(dive(20) > 0);
        assert!(is_there(deepest()), "160 KiB were touched");
        empty_stack();
        assert!(!is_there(deepest()));
        assert!(own.iter().all(|byte| *byte == 7));
        assert!(dive(20) > 0, "the stack is there again");
    }

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
