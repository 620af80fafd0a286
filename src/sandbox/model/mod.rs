//! A model of the teardown: a shim that ends or dies, the finisher and the sweeper that come after it, and a new shim of
//! the same name, in every order.
//!
//! Nothing is modelled but the order of things. The actors call what the processes call ([`Sandbox`], [`Recovery`],
//! [`DaemonRecord`]), on real files, locks, mounts and namespaces, with a containerd and a CNI plugin in memory. They
//! take turns at the points of [`crate::interleave`], one before each thing that another process can see. An actor that
//! dies unwinds at such a point: its locks are let go, as the kernel would, and nothing that it was about to do is done.
//!
//! loom and shuttle take turns at the standard library's or tokio's primitives, and what is shared here are files and
//! locks of the kernel, which neither knows; stateright checks a model written beside the code. So the scheduler is our
//! own (`interleave/table.rs`, all of it), and proptest shrinks what it finds.
//!
//! [`Sandbox`]: super::Sandbox
//! [`Recovery`]: super::recover::Recovery
//! [`DaemonRecord`]: super::daemon_record::DaemonRecord

mod actors;
mod schedule;
mod world;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use proptest::prelude::*;

use self::{
    schedule::{Bounds, Exhaustive, Given, Schedule, Share, Switch},
    world::{ClientsNetns, Things, World},
};
use crate::{interleave::Next, keeper::Preference};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// The first one, which is shut down.
    OldShim,
    /// The first one, which dies.
    RunningShim,
    Finisher,
    Sweeper,
    NewShim,
}
use Role::{Finisher, NewShim, OldShim, RunningShim, Sweeper};

/// Who does what, in the order of their numbers. The first is the shim that was there before.
#[derive(Clone, Copy, Debug)]
struct Cast {
    roles: &'static [Role],
    /// How many of the first DELs fail.
    failing_dels: usize,
    /// What keeps the pods' namespaces.
    keeper: Preference,
}

/// Whose each thing is that is there, and what has come of it.
#[derive(Default)]
struct Book {
    things: BTreeMap<&'static str, (String, usize)>,
    trace: Vec<String>,
}

impl Book {
    /// Compares the world with what it was before the turn of `actor`.
    fn seen(&mut self, world: &World, actor: usize, what: &'static str) -> Result<(), String> {
        self.trace.push(format!("{actor}: {what}"));
        if let Some(complaint) = world.complaint() {
            return Err(complaint);
        }
        let now = world.things();
        for (thing, (was, owner)) in &self.things {
            let is_gone = now.get(thing) != Some(was);
            if is_gone && *owner != actor && !world.table.is_over(*owner) {
                return Err(format!(
                    "actor {actor} took the {thing} of actor {owner}, which lives"
                ));
            }
        }
        if let Some(error) = self.came_too_early(&now, actor) {
            return Err(error);
        }
        let owned = |(thing, it): (&'static str, String)| {
            let before = self.things.get(thing).filter(|(was, _)| *was == it);
            (thing, (it.clone(), before.map_or(actor, |(_, owner)| *owner)))
        };
        self.things = now.into_iter().map(owned).collect();
        Ok(())
    }

    /// A sandbox's journal is not opened before everything of an earlier one is gone.
    fn came_too_early(&self, now: &Things, actor: usize) -> Option<String> {
        let journal = now.get("journal")?;
        if self.things.get("journal").is_some_and(|(was, _)| was == journal) {
            return None;
        }
        let mut earlier = self.things.iter().filter(|(thing, (_, owner))| {
            *owner != actor && now.contains_key(*thing) && **thing != "journal"
        });
        let (thing, (_, owner)) = earlier.next()?;
        Some(format!("actor {actor} begins a sandbox beside the {thing} of actor {owner}"))
    }
}

/// Plays `cast` as `schedule` says, cleans up after whoever died, and looks whether all is as it should be.
fn play(
    cast: Cast,
    netns: Option<&ClientsNetns>,
    schedule: &mut dyn Schedule,
) -> Result<(), String> {
    let world = World::new(cast, netns);
    for (actor, role) in cast.roles.iter().enumerate() {
        let shared = Arc::clone(&world);
        match role {
            OldShim | NewShim => world.table.seat(move || actors::shim(shared, actor, false)),
            RunningShim => world.table.seat(move || actors::shim(shared, actor, true)),
            Finisher => {
                world.to_look.lock().unwrap().insert(actor);
                world.table.seat(move || actors::finisher(shared, actor));
            }
            Sweeper => world.table.seat(move || actors::sweeper(shared, actor)),
        }
    }
    let mut book = Book::default();
    let played = act(&world, cast, &mut book, schedule);
    world.table.clear();
    played.map_err(|error| format!("{error}\n  {}", book.trace.join("\n  ")))
}

fn act(
    world: &Arc<World>,
    cast: Cast,
    book: &mut Book,
    schedule: &mut dyn Schedule,
) -> Result<(), String> {
    let table = &world.table;
    table.run(
        |last, ready| schedule.next(last, ready),
        |actor, what| book.seen(world, actor, what),
    )?;
    let count = cast.roles.len();
    let dead = (0..count).filter(|actor| table.is_dead(*actor)).count();
    // A new shim that lived to its end has finished what the old one left; else containerd calls `delete` once more.
    let is_done = dead == 0 || (cast.roles.contains(&NewShim) && dead == 1 && table.is_dead(0));
    if !is_done {
        let shared = Arc::clone(world);
        table.seat(move || actors::finisher(shared, count));
        table.run(|_, ready| Next::Go(ready[0]), |actor, what| book.seen(world, actor, what))?;
    }
    world.left(dead + cast.failing_dels)
}

/// How much is played: 1 is for every run of the unit tests.
fn effort() -> usize {
    let asked = std::env::var("MOORING_MODEL").ok();
    asked.map_or(1, |effort| effort.parse().expect("MOORING_MODEL is a number")).max(1)
}

/// Plays the orders of `cast` within `bounds` that are interrupted after one turn of `of`, which are others in each run;
/// with that effort, all.
fn every_order(name: &str, cast: Cast, bounds: Bounds, of: usize) {
    let of = of.div_ceil(effort());
    #[expect(clippy::disallowed_methods, reason = "a number that is another each time")]
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let share = Share { of, at: now.subsec_nanos() as usize / 1000 % of };
    let netns = ClientsNetns::new(name);
    let mut schedule = Exhaustive::new(bounds, share);
    let mut count = 0;
    loop {
        count += 1;
        if let Err(error) = play(cast, Some(&netns), &mut schedule) {
            panic!("order {count} of {cast:?} within {bounds:?}, {share:?}: {error}");
        }
        if !schedule.advance() {
            println!("{count} orders of {cast:?} within {bounds:?}, {share:?}");
            return;
        }
    }
}

const ENDING: Cast =
    Cast { roles: &[OldShim, NewShim], failing_dels: 0, keeper: Preference::Thread };
const FINISHED: Cast = Cast { roles: &[RunningShim, Finisher, NewShim], ..ENDING };
/// Their namespaces outlive their shims.
const PINNED: Cast = Cast { keeper: Preference::Pinned, ..FINISHED };

#[test]
fn a_new_shim_comes_while_the_old_one_ends() {
    every_order("ending", ENDING, Bounds { switches: 2, deaths: 0, early: usize::MAX }, 4);
}

#[test]
fn a_shim_dies_anywhere_and_a_new_one_comes() {
    every_order("death", ENDING, Bounds { switches: 0, deaths: 1, early: usize::MAX }, 4);
}

#[test]
fn a_new_shim_comes_while_a_finisher_works() {
    every_order("finisher", FINISHED, Bounds { switches: 1, deaths: 0, early: usize::MAX }, 4);
}

#[test]
fn a_shim_or_a_finisher_of_pinned_namespaces_dies_anywhere() {
    let one = Bounds { switches: 0, deaths: 1, early: usize::MAX };
    every_order("pinned-ending", Cast { roles: ENDING.roles, ..PINNED }, one, 4);
    every_order("pinned", PINNED, one, 4);
}

#[test]
fn a_finisher_dies_anywhere_and_a_new_shim_comes() {
    every_order(
        "finishers-death",
        FINISHED,
        Bounds { switches: 0, deaths: 1, early: usize::MAX },
        4,
    );
}

#[test]
fn finisher_and_new_shim_overtake_each_other_and_one_dies() {
    every_order("both", FINISHED, Bounds { switches: 3, deaths: 1, early: usize::MAX }, 64);
}

/// Before a new shim has the journal's lock, and in the midst of it.
#[test]
fn finisher_and_new_shim_overtake_each_other_at_their_beginning() {
    every_order("early", FINISHED, Bounds { switches: 3, deaths: 0, early: 20 }, 8);
    every_order("earlier", FINISHED, Bounds { switches: 2, deaths: 0, early: 16 }, 1);
}

fn switches() -> impl Strategy<Value = Vec<Switch>> {
    // Most that is decided is decided at the beginning.
    let after = prop_oneof![0_usize..16, 0_usize..120];
    let one = (0_usize..4, after, 0_usize..3, prop::bool::weighted(0.25));
    let one = one.prop_map(|(actor, after, to, dies)| Switch { actor, after, to, dies });
    prop::collection::vec(one, 0..10)
}

fn casts() -> impl Strategy<Value = Cast> {
    let roles: [&'static [Role]; 5] = [
        ENDING.roles,
        FINISHED.roles,
        &[OldShim, Finisher, NewShim],
        &[OldShim, Finisher, Finisher, NewShim],
        &[OldShim, Finisher, Sweeper, NewShim],
    ];
    let keepers = prop::sample::select(vec![Preference::Thread, Preference::Pinned]);
    (prop::sample::select(roles.to_vec()), 0_usize..3, keepers)
        .prop_map(|(roles, failing_dels, keeper)| Cast { roles, failing_dels, keeper })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: u32::try_from(64 * effort()).unwrap(),
        ..ProptestConfig::default()
    })]

    /// Whoever comes in between and dies wherever, and whatever DEL fails: everything of a sandbox is released once, by
    /// whoever it falls to, nothing of one that lives is, and at the end nothing is left.
    #[test]
    fn any_order_with_deaths_and_failures(cast in casts(), switches in switches()) {
        let played = play(cast, None, &mut Given::new(switches));
        prop_assert!(played.is_ok(), "{}", played.unwrap_err());
    }
}
