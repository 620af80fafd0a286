//! Actors that take turns: each on threads of its own, but one at a time, from point to point.

use std::{
    any::Any,
    cell::RefCell,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, Thread},
    time::Duration,
};

use tokio::sync::watch;

/// How long an actor may take from one point to the next. More is a deadlock that no other actor can resolve.
const HANG: Duration = Duration::from_secs(20);
/// How many turns there may be before something is said to go on for ever.
const TURNS: usize = 20_000;

thread_local! {
    /// The actor that this thread works for.
    static SEAT: RefCell<Option<Seat>> = const { RefCell::new(None) };
}

#[derive(Clone)]
struct Seat {
    table: Arc<Table>,
    actor: usize,
}

/// What a thread of a dead actor unwinds with.
struct Dead;

/// Who is next, and what comes of him.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Go(usize),
    Kill(usize),
}

/// What a thread waits for beside its turn.
#[derive(Clone)]
enum Until {
    Now,
    /// Another actor has had a turn.
    Others,
    When(Arc<dyn Fn() -> bool + Send + Sync>),
}

/// A thread that waits for its turn.
struct Waiting {
    what: &'static str,
    until: Until,
    /// How many turns others had had when it came.
    others: usize,
    granted: Arc<AtomicBool>,
    thread: Thread,
}

#[derive(Default)]
struct Actor {
    running: bool,
    waiting: Vec<Waiting>,
    dead: bool,
    ended: Option<Result<(), String>>,
    turns: usize,
}

#[derive(Default)]
struct State {
    actors: Vec<Actor>,
}

/// The actors, and whose turn it is.
#[derive(Default)]
pub(crate) struct Table {
    state: Mutex<State>,
    changed: Condvar,
    deaths: Mutex<Vec<watch::Sender<bool>>>,
}

pub(crate) fn point(what: &'static str) {
    turn(what, Until::Now);
}

/// Waits until another actor has had a turn.
pub(crate) fn pause(time: Duration) {
    if !turn("wait", Until::Others) {
        thread::sleep(time);
    }
}

/// Waits for a turn at which `holds` holds.
pub(crate) fn wait_until(what: &'static str, holds: impl Fn() -> bool + Send + Sync + 'static) {
    turn(what, Until::When(Arc::new(holds)));
}

/// Kills another actor of this thread's table, and waits until nothing of it goes on.
pub(crate) fn kill(actor: usize) {
    if let Some(seat) = SEAT.with_borrow(Clone::clone) {
        seat.table.kill(actor);
    }
}

fn turn(what: &'static str, until: Until) -> bool {
    let Some(seat) = SEAT.with_borrow(Clone::clone) else { return false };
    // What a dead actor drops on its way out has no turns any more.
    if !thread::panicking() {
        seat.table.take_turn(seat.actor, what, until);
    }
    true
}

impl Table {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an actor, which begins at once and comes to its first point.
    pub(crate) fn seat<F>(self: &Arc<Self>, story: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = Result<(), String>>,
    {
        let (death, died) = watch::channel(false);
        self.deaths.lock().unwrap().push(death);
        let actor = {
            let mut state = self.state();
            state.actors.push(Actor { running: true, ..Actor::default() });
            state.actors.len() - 1
        };
        let seat = Seat { table: Arc::clone(self), actor };
        thread::spawn(move || {
            let lived = catch_unwind(AssertUnwindSafe(|| live(&seat, died, story)));
            let ended = lived.unwrap_or_else(|panic| words(&*panic));
            let mut state = seat.table.state();
            state.actors[actor].running = false;
            state.actors[actor].ended = Some(ended);
            seat.table.changed.notify_all();
        });
    }

    fn take_turn(&self, actor: usize, what: &'static str, until: Until) {
        let granted = Arc::new(AtomicBool::new(false));
        {
            let mut state = self.state();
            if state.actors[actor].dead {
                drop(state);
                resume_unwind(Box::new(Dead));
            }
            let others = state.turns_of_others(actor);
            let (thread, granted) = (thread::current(), Arc::clone(&granted));
            let me = &mut state.actors[actor];
            me.running = false;
            me.waiting.push(Waiting { what, until, others, granted, thread });
        }
        self.changed.notify_all();
        while !granted.load(Ordering::Acquire) {
            if self.state().actors[actor].dead {
                resume_unwind(Box::new(Dead));
            }
            thread::park();
        }
    }

    fn kill(&self, actor: usize) {
        // Known to the async thread first: it goes no further once a blocking one has unwound.
        self.deaths.lock().unwrap()[actor].send_replace(true);
        let mut state = self.state();
        state.actors[actor].dead = true;
        state.actors[actor].waiting.drain(..).for_each(|waiting| waiting.thread.unpark());
        while state.actors[actor].ended.is_none() {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn is_over(&self, actor: usize) -> bool {
        self.state().actors[actor].ended.is_some()
    }

    pub(crate) fn is_dead(&self, actor: usize) -> bool {
        self.state().actors[actor].dead
    }

    /// Gives turns as `choose` says until every actor has ended. `choose` hears who had the last turn and who can have the
    /// next; `seen` looks at the world after each turn.
    pub(crate) fn run(
        &self,
        mut choose: impl FnMut(Option<usize>, &[usize]) -> Next,
        mut seen: impl FnMut(usize, &'static str) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut last: Option<(usize, &'static str)> = None;
        for _ in 0..TURNS {
            let ready = self.quiet(last)?;
            if let Some((actor, what)) = last {
                seen(actor, what)?;
            }
            let Some(ready) = ready else { return self.state().results() };
            match choose(last.map(|(actor, _)| actor), &ready) {
                Next::Go(actor) => {
                    let mut state = self.state();
                    let me = &mut state.actors[actor];
                    let waiting = me.waiting.remove(0);
                    me.running = true;
                    me.turns += 1;
                    drop(state);
                    last = Some((actor, waiting.what));
                    waiting.granted.store(true, Ordering::Release);
                    waiting.thread.unpark();
                }
                Next::Kill(actor) => {
                    self.kill(actor);
                    last = Some((actor, "dies"));
                }
            }
        }
        Err("it never ends".into())
    }

    /// Waits until nobody runs; who can have the next turn, or nothing when all have ended.
    fn quiet(&self, last: Option<(usize, &'static str)>) -> Result<Option<Vec<usize>>, String> {
        let mut state = self.state();
        while state.actors.iter().any(|actor| actor.running) {
            let (next, timeout) =
                self.changed.wait_timeout(state, HANG).unwrap_or_else(PoisonError::into_inner);
            state = next;
            if timeout.timed_out() && state.actors.iter().any(|actor| actor.running) {
                return Err(format!("hangs after {last:?}"));
            }
        }
        if state.actors.iter().all(|actor| actor.ended.is_some()) {
            return Ok(None);
        }
        let waiting: Vec<_> = (0..state.actors.len()).filter_map(|i| state.until(i)).collect();
        drop(state);
        // Conditions look at the table themselves.
        let ready = waiting.into_iter().filter(|(_, until)| match until {
            Until::Now => true,
            Until::Others => false,
            Until::When(holds) => holds(),
        });
        let ready: Vec<usize> = ready.map(|(actor, _)| actor).collect();
        if ready.is_empty() {
            return Err("all wait for each other".into());
        }
        Ok(Some(ready))
    }

    /// Ends whoever has not, so that no thread outlives a failed run.
    pub(crate) fn clear(&self) {
        let count = self.state().actors.len();
        (0..count).for_each(|actor| self.kill(actor));
    }
}

impl State {
    fn turns_of_others(&self, actor: usize) -> usize {
        let others = self.actors.iter().enumerate().filter(|(other, _)| *other != actor);
        others.map(|(_, other)| other.turns + usize::from(other.ended.is_some())).sum()
    }

    /// What the first waiting thread of `actor` still waits for.
    fn until(&self, actor: usize) -> Option<(usize, Until)> {
        let waiting = self.actors[actor].waiting.first()?;
        match waiting.until {
            Until::Others if self.turns_of_others(actor) > waiting.others => {
                Some((actor, Until::Now))
            }
            _ => Some((actor, waiting.until.clone())),
        }
    }

    fn results(&self) -> Result<(), String> {
        for (index, actor) in self.actors.iter().enumerate() {
            if let Some(Err(error)) = &actor.ended
                && !actor.dead
            {
                return Err(format!("actor {index}: {error}"));
            }
        }
        Ok(())
    }
}

/// One actor's life: a runtime of its own, all of whose threads sit at the same seat.
fn live<F>(
    seat: &Seat,
    mut died: watch::Receiver<bool>,
    story: impl FnOnce() -> F,
) -> Result<(), String>
where
    F: Future<Output = Result<(), String>>,
{
    SEAT.set(Some(seat.clone()));
    let threads = seat.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(8)
        .on_thread_start(move || SEAT.set(Some(threads.clone())))
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::select! {
            biased;
            _ = died.wait_for(|died| *died) => Err("died".into()),
            ended = story() => ended,
        }
    })
}

fn words(panic: &(dyn Any + Send)) -> Result<(), String> {
    if panic.is::<Dead>() {
        return Err("died".into());
    }
    let text = panic.downcast_ref::<String>().cloned();
    let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
    Err(format!("panicked: {}", text.unwrap_or_default()))
}
