//! ttrpc requests against the Sandbox and Task services, one conversation an input.
//!
//! An input is a list of steps: a byte that says what is done, two of the payload's length (little-endian), the payload.
//! From 0 on the byte is a method of [`METHODS`], whose payload is the request; after them come the files and deeds of
//! [`Step`]. With its highest bit set nobody waits for the answer before the next step.

mod confined;
mod conversation;
mod runtime;

use std::{
    sync::{
        LazyLock, Mutex, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

/// The name of the threads that the services run on.
const SERVICES: &str = "services";
/// That of a pod's own thread.
const POD: &str = "pod";

/// What is called, in the order of the first byte. Seeds have these numbers: new ones go to the end.
const METHODS: [(&str, &str); 26] = [
    (conversation::SANDBOX, "CreateSandbox"),
    (conversation::SANDBOX, "StartSandbox"),
    (conversation::SANDBOX, "Platform"),
    (conversation::SANDBOX, "StopSandbox"),
    (conversation::SANDBOX, "WaitSandbox"),
    (conversation::SANDBOX, "SandboxStatus"),
    (conversation::SANDBOX, "PingSandbox"),
    (conversation::SANDBOX, "ShutdownSandbox"),
    (conversation::SANDBOX, "SandboxMetrics"),
    (conversation::TASK, "Create"),
    (conversation::TASK, "Start"),
    (conversation::TASK, "State"),
    (conversation::TASK, "Delete"),
    (conversation::TASK, "Pids"),
    (conversation::TASK, "Pause"),
    (conversation::TASK, "Resume"),
    (conversation::TASK, "Checkpoint"),
    (conversation::TASK, "Kill"),
    (conversation::TASK, "Exec"),
    (conversation::TASK, "ResizePty"),
    (conversation::TASK, "CloseIO"),
    (conversation::TASK, "Update"),
    (conversation::TASK, "Wait"),
    (conversation::TASK, "Stats"),
    (conversation::TASK, "Connect"),
    (conversation::TASK, "Shutdown"),
];

/// One step of a conversation.
enum Step<'a> {
    Call {
        method: (&'static str, &'static str),
        payload: &'a [u8],
        awaited: bool,
    },
    /// The specification in the sandbox's bundle.
    SandboxSpec(&'a [u8]),
    /// The specification in the container's bundle.
    ContainerSpec(&'a [u8]),
    /// Every process of a container ends by itself.
    Exits,
}

/// The longest conversation.
const STEPS: usize = 24;

fn steps(input: &[u8]) -> Vec<Step<'_>> {
    let mut rest = input;
    let mut steps = Vec::new();
    while let ([kind, low, high, more @ ..], true) = (rest, steps.len() < STEPS) {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(more.len());
        let (payload, after) = more.split_at(length);
        rest = after;
        let number = usize::from(kind & 0x7f);
        steps.push(match METHODS.get(number) {
            Some(method) => Step::Call { method: *method, payload, awaited: kind & 0x80 == 0 },
            None if number == METHODS.len() => Step::SandboxSpec(payload),
            None if number == METHODS.len() + 1 => Step::ContainerSpec(payload),
            None => Step::Exits,
        });
    }
    steps
}

/// Nothing where all held, else where that is told.
type Outcome = Result<(), &'static str>;

/// Where inputs go, and where their outcomes come from.
type Ends = (SyncSender<Vec<u8>>, Receiver<Outcome>);

/// The one thread that the services run on, and its answers: a process has one reaper, and one place that is its own.
static THREAD: LazyLock<Mutex<Ends>> = LazyLock::new(|| {
    let ((give, inputs), (answer, outcomes)) = (sync_channel::<Vec<u8>>(0), sync_channel(0));
    tell_of_panics(answer.clone());
    let serve = move || {
        let place = confined::enter();
        for input in inputs {
            conversation::hold(&place, &steps(&input));
            if answer.send(Ok(())).is_err() {
                return;
            }
        }
    };
    let started = thread::Builder::new().name(SERVICES.into()).spawn(serve);
    started.expect("a thread for the services");
    Mutex::new((give, outcomes))
});

/// Has whoever waits for the services told of a panic on any of their threads. A task that panics would end alone
/// otherwise, and its caller be told of it as of any error. That thread goes no further: a finding is written down by
/// the process as it is then, which its own threads, shut in, could not.
fn tell_of_panics(answer: SyncSender<Outcome>) {
    let earlier = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !thread::current().name().is_some_and(|name| name == SERVICES || name == POD) {
            return earlier(panic);
        }
        eprintln!("{panic}\n{}", std::backtrace::Backtrace::force_capture());
        let _ = answer.send(Err("a panic, told above"));
        loop {
            thread::park();
        }
    }));
}

/// Whether this kernel keeps the services from the node.
#[cfg(test)]
pub fn are_possible() -> bool {
    confined::is_possible()
}

pub fn requests(input: &[u8]) {
    let thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    let (give, outcomes) = &*thread;
    give.send(input.to_vec()).expect("the services' thread lives");
    let outcome = outcomes.recv().expect("the services' thread lives");
    drop(thread);
    if let Err(why) = outcome {
        panic!("the services: {why}");
    }
}
