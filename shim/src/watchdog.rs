//! A shim that cannot stay hung.
//!
//! Everything in a shim happens on one thread. Should that thread get stuck, the shim lives, does not answer, and its pod
//! could never be stopped. So, once it has not gone to sleep for [`PATIENCE`] rounds while a stop is wanted, what it
//! hangs in is logged and the process ends; containerd then runs `delete`, which completes the teardown from the journal.
//!
//! There is no thread for this, and nothing while the shim is idle: whenever the thread wakes a timer of the kernel is
//! set, and cleared when it goes to sleep again. Only where it stays awake the timer's signal comes. Its handler does
//! what little it does by system calls alone.
//!
//! A stop is wanted while StopSandbox or ShutdownSandbox is under way, and while one of them, a Kill, or an operator's Stop
//! lies unread in a connection. A shim that hangs while nobody wants it to stop is left alone: its containers are well.
//!
//! Limits. A signal needs a thread that can take it: where the only one sleeps uninterruptibly in the kernel (state D)
//! nothing is logged, and only the last resort works, a second timer whose signal is SIGKILL itself, set while a stop is
//! under way. A call that not even SIGKILL interrupts holds the process until it returns. What waits in a connection
//! that was not accepted yet is not seen; a containerd that connects anew and gets no answer runs `delete` by itself.

use std::{
    cell::UnsafeCell,
    io,
    mem::MaybeUninit,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering},
    },
    time::Duration,
};

use libc::{c_int, c_void};

/// How often a thread that does not sleep is looked at, and how many looks in a row must find it so.
const ROUND: Duration = Duration::from_secs(5);
const PATIENCE: u32 = 4;
/// How often a stop that is under way shows that the thread turns, and how long it may not before the last resort.
const BEAT: Duration = Duration::from_secs(1);
const LAST_RESORT: Duration = Duration::from_mins(1);
/// The requests by which a client wants an end, as they lie in a connection: the length and name of the method, in the
/// second field of ttrpc's request.
const STOPS: [&[u8]; 4] = [
    b"\x12\x0bStopSandbox",
    b"\x12\x0fShutdownSandbox",
    b"Task\x12\x04Kill",
    b"Inspect\x12\x04Stop",
];
/// How many connections are looked at; containerd has one, and one more for each of its clients.
const CONNECTIONS: usize = 16;
/// How much of what is unread is looked at.
const PEEK: usize = 64 << 10;
const NONE: c_int = -1;

/// A timer of the kernel's.
struct Timer(libc::timer_t);

// SAFETY: the kernel's name of a timer; setting it is safe from any thread.
unsafe impl Send for Timer {}
// SAFETY: as above.
unsafe impl Sync for Timer {}

static ROUNDS: OnceLock<Timer> = OnceLock::new();
static RESORT: OnceLock<Timer> = OnceLock::new();
/// What the handler says at the end: fields as every line of the log has them.
static FIELDS: OnceLock<String> = OnceLock::new();
static LOG: AtomicI32 = AtomicI32::new(NONE);
static THREAD: AtomicI32 = AtomicI32::new(0);
static STOPPING: AtomicU32 = AtomicU32::new(0);
static BEATS: AtomicU32 = AtomicU32::new(0);
static SEEN: AtomicU32 = AtomicU32::new(0);
static LATE: AtomicU32 = AtomicU32::new(0);
static LOOKING: AtomicBool = AtomicBool::new(false);
static OPEN: [AtomicI32; CONNECTIONS] = [const { AtomicI32::new(NONE) }; CONNECTIONS];

/// What was peeked at: not touched, and so no memory, before the first look.
struct Peeked(UnsafeCell<[u8; PEEK]>);
// SAFETY: only the handler uses it, and `LOOKING` lets in one at a time.
unsafe impl Sync for Peeked {}
static PEEKED: Peeked = Peeked(UnsafeCell::new([0; PEEK]));

impl Timer {
    fn new(signal: c_int) -> io::Result<Self> {
        // SAFETY: all-zero is a valid sigevent.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = signal;
        let mut timer = ptr::null_mut();
        // SAFETY: both point to what the call wants, for as long as it takes.
        let made =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        if made == 0 { Ok(Self(timer)) } else { Err(io::Error::last_os_error()) }
    }

    /// Sets it to `first` from now, then each `again`; zero is never.
    fn set(&self, first: Duration, again: Duration) {
        let spec = |length: Duration| libc::timespec {
            tv_sec: libc::time_t::try_from(length.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: length.subsec_nanos().into(),
        };
        let value = libc::itimerspec { it_interval: spec(again), it_value: spec(first) };
        // SAFETY: the timer exists, and the value is read only. With valid lengths it cannot fail.
        unsafe { libc::timer_settime(self.0, 0, &raw const value, ptr::null_mut()) };
    }
}

/// Begins to watch the calling thread, which is to call [`awake`] and [`asleep`]. `fields` end what is logged.
pub fn start(fields: String) -> io::Result<()> {
    // SAFETY: gettid only asks.
    THREAD.store(unsafe { libc::gettid() }, Ordering::Relaxed);
    let _ = FIELDS.set(fields);
    // SAFETY: all-zero is a valid sigaction: no flags, an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = fired as extern "C" fn(c_int) as usize;
    // What it interrupts goes on afterwards.
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler makes system calls and uses atomics only, which signal-safety(7) allows.
    if unsafe { libc::sigaction(libc::SIGALRM, &raw const action, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let _ = ROUNDS.set(Timer::new(libc::SIGALRM)?);
    let _ = RESORT.set(Timer::new(libc::SIGKILL)?);
    Ok(())
}

/// Where the log goes now.
pub fn log_to(descriptor: Option<c_int>) {
    LOG.store(descriptor.unwrap_or(NONE), Ordering::Relaxed);
}

/// The thread begins a turn.
pub fn awake() {
    if let Some(timer) = ROUNDS.get() {
        timer.set(ROUND, ROUND);
    }
}

/// The thread has nothing to do.
pub fn asleep() {
    LATE.store(0, Ordering::Relaxed);
    if let Some(timer) = ROUNDS.get() {
        timer.set(Duration::ZERO, Duration::ZERO);
    }
}

/// A connection whose unread requests count, until it is dropped.
pub struct Connection(Option<usize>);

impl Connection {
    /// The connection with this descriptor, which is open for as long as the answer is kept.
    pub fn new(descriptor: c_int) -> Self {
        let free = |slot: &AtomicI32| {
            let (ok, err) = (Ordering::Relaxed, Ordering::Relaxed);
            slot.compare_exchange(NONE, descriptor, ok, err).is_ok()
        };
        Self(OPEN.iter().position(free))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(slot) = self.0.and_then(|slot| OPEN.get(slot)) {
            slot.store(NONE, Ordering::Relaxed);
        }
    }
}

/// A stop is under way for as long as this lives.
pub struct Stopping(());

/// Says that a stop is under way.
pub fn stopping() -> Stopping {
    if STOPPING.fetch_add(1, Ordering::Relaxed) == 0 {
        tokio::spawn(async {
            while STOPPING.load(Ordering::Relaxed) > 0 {
                BEATS.fetch_add(1, Ordering::Relaxed);
                if let Some(timer) = RESORT.get() {
                    timer.set(LAST_RESORT, Duration::ZERO);
                }
                tokio::time::sleep(BEAT).await;
            }
            if let Some(timer) = RESORT.get() {
                timer.set(Duration::ZERO, Duration::ZERO);
            }
        });
    }
    Stopping(())
}

impl Drop for Stopping {
    fn drop(&mut self) {
        STOPPING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The handler: the thread has been awake for a whole round.
extern "C" fn fired(_: c_int) {
    if LOOKING.swap(true, Ordering::Acquire) {
        return;
    }
    // SAFETY: the place of this thread's errno, which whatever was interrupted may be about to read.
    let errno = unsafe { *libc::__errno_location() };
    let beats = BEATS.load(Ordering::Relaxed);
    let turns = SEEN.swap(beats, Ordering::Relaxed) != beats;
    let wanted = (STOPPING.load(Ordering::Relaxed) > 0 && !turns) || stop_is_unread();
    if !wanted {
        LATE.store(0, Ordering::Relaxed);
    } else if LATE.fetch_add(1, Ordering::Relaxed) + 1 >= PATIENCE {
        report();
        // SAFETY: ends this process and nothing else.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
    }
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = errno };
    LOOKING.store(false, Ordering::Release);
}

fn stop_is_unread() -> bool {
    // SAFETY: `LOOKING` is held, so nobody else uses it.
    let buffer = unsafe { &mut *PEEKED.0.get() };
    OPEN.iter().map(|slot| slot.load(Ordering::Relaxed)).filter(|fd| *fd != NONE).any(|fd| {
        let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
        // SAFETY: the buffer is as long as is said. A descriptor that was closed meanwhile is an error.
        let length = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), PEEK, flags) };
        let unread = usize::try_from(length).ok().and_then(|length| buffer.get(..length));
        unread.is_some_and(|unread| {
            STOPS.iter().any(|stop| unread.windows(stop.len()).any(|part| part == *stop))
        })
    })
}

/// Text put together without the heap.
struct Line {
    text: [u8; 1536],
    length: usize,
}

impl Line {
    fn add(&mut self, text: &[u8]) {
        for byte in text {
            let byte = match byte {
                b'\n' => b';',
                b'"' | b'\\' => b'\'',
                0..=31 => b' ',
                other => *other,
            };
            self.put(byte);
        }
    }

    fn put(&mut self, byte: u8) {
        if let Some(place) = self.text.get_mut(self.length) {
            *place = byte;
            self.length += 1;
        }
    }

    fn number(&mut self, number: u32) {
        let mut digits = [0; 10];
        let (mut at, mut rest) = (digits.len(), number);
        loop {
            at -= 1;
            if let Some(digit) = digits.get_mut(at) {
                *digit = b'0' + u8::try_from(rest % 10).unwrap_or(0);
            }
            rest /= 10;
            if rest == 0 || at == 0 {
                break;
            }
        }
        self.add(digits.get(at..).unwrap_or_default());
    }

    /// What the kernel says of the thread in a file of its own.
    fn file(&mut self, thread: u32, name: &[u8]) {
        let mut path = Self { text: [0; 1536], length: 0 };
        path.add(b"/proc/self/task/");
        path.number(thread);
        path.add(b"/");
        path.add(name);
        path.put(0);
        let mut text = [0_u8; 400];
        // SAFETY: a path that ends in a zero, and a buffer that is as long as is said.
        let length = unsafe {
            let fd = libc::open(path.text.as_ptr().cast(), libc::O_RDONLY | libc::O_CLOEXEC);
            let length = libc::read(fd, text.as_mut_ptr().cast::<c_void>(), text.len());
            libc::close(fd);
            length
        };
        let known = usize::try_from(length).ok().and_then(|length| text.get(..length));
        self.add(b" ");
        self.add(name);
        self.add(b"=");
        self.add(known.unwrap_or(b"unknown"));
    }
}

fn report() {
    let mut line = Line { text: [0; 1536], length: 0 };
    for byte in *b"level=error msg=\"" {
        line.put(byte);
    }
    line.add(b"the shim hangs: a stop is wanted, and its thread has not turned for ");
    let seconds = u32::try_from(ROUND.as_secs()).unwrap_or(0).saturating_mul(PATIENCE);
    line.number(seconds);
    line.add(b" s. It ends, so that delete completes the teardown. The thread:");
    let thread = THREAD.load(Ordering::Relaxed).unsigned_abs();
    for name in [b"wchan".as_slice(), b"syscall", b"stack"] {
        line.file(thread, name);
    }
    for byte in *b"\" " {
        line.put(byte);
    }
    if let Some(fields) = FIELDS.get() {
        line.add(fields.as_bytes());
    }
    line.length = line.length.min(line.text.len() - 1);
    line.put(b'\n');
    // SAFETY: the buffer is as long as is said; a log that is gone or full is an error, and then nothing is logged.
    unsafe {
        libc::write(LOG.load(Ordering::Relaxed), line.text.as_ptr().cast(), line.length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_a_line_and_within_its_room() {
        let mut line = Line { text: [0; 1536], length: 0 };
        line.add(b"a\n\"b\\\t");
        line.number(0);
        line.number(4_294_967_295);
        assert_eq!(line.text.get(..line.length), Some(b"a;'b' 04294967295".as_slice()));
        line.add(&[b'x'; 4096]);
        assert_eq!(line.length, line.text.len());
    }
}
