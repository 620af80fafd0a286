//! `mooring doctor`: what belongs to no living sandbox, whoever left it, and whether the node is set up as it should be.
//! Nothing is changed.
//!
//! One look for each kind of thing (`looks/`) judges what was read once (`world/`) and gives findings, which are data;
//! how they are shown is apart (`render.rs`).

pub mod finding;
pub mod looks;
pub mod places;
mod render;
mod setup;
pub mod world;

use std::{
    io::{IsTerminal, Write},
    time::{Duration, SystemTime},
};

use anyhow::Result;

use crate::{
    args::DoctorArgs,
    containerd_config::ContainerdConfig,
    exit::{CouldNot, Exit},
    node,
};
use finding::Finding;
use looks::LOOKS;
use places::Places;
use render::Report;
use world::{Asked, World};

/// How long after what was found a second look is taken: what was just coming or going is not there any more, or has an
/// owner by then.
const SECOND_LOOK: Duration = Duration::from_millis(500);

pub fn run(args: &DoctorArgs, out: &mut dyn Write) -> Result<Exit> {
    node::need_root("doctor")?;
    let config = ContainerdConfig::read(&args.containerd.containerd_config);
    let look = || {
        let places = Places::find(&args.roots, &args.containerd, &config);
        World::gather(places, args.quick, SystemTime::now())
    };
    let mut world = look()?;
    let mut findings = examine(&world);
    if !findings.is_empty() {
        std::thread::sleep(SECOND_LOOK);
        world = look()?;
        let again = examine(&world);
        findings = confirmed(&findings, again);
    }
    let setup = setup::remarks(&world, &config);
    let report = Report { findings, setup, not_looked_at: not_looked_at(&world) };
    let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    report.write(args.output, colours, out)?;
    if !world.places.complaints.is_empty() {
        let complaints = world.places.complaints.join("; ");
        return Err(CouldNot(format!("{complaints}; looked in the usual places alone")).into());
    }
    Ok(if report.is_clean() { Exit::Clean } else { Exit::Findings })
}

fn examine(world: &World) -> Vec<Finding> {
    LOOKS
        .iter()
        .filter(|look| !(world.quick && look.is_slow()))
        .flat_map(|look| look.findings(world))
        .collect()
}

/// What both looks found, as the later says it.
fn confirmed(before: &[Finding], again: Vec<Finding>) -> Vec<Finding> {
    let seen = |one: &Finding| before.iter().any(|earlier| earlier.is_same(one));
    again.into_iter().filter(seen).collect()
}

fn not_looked_at(world: &World) -> Vec<String> {
    let mut all = Vec::new();
    if let Asked::Not(reason) = &world.containerd {
        all.push(format!(
            "containerd: {reason}; leases, snapshots and orphaned shims were not looked at"
        ));
    }
    if world.quick {
        all.push("cgroups: they are a large tree, --quick".to_owned());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use finding::Sure;

    #[test]
    fn only_what_is_seen_twice_is_told() {
        let one = |what: &str| Finding::new("netns", what);
        let again = vec![one("b").because(Sure::Likely, "why"), one("c")];
        let told = confirmed(&[one("a"), one("b")], again);
        assert_eq!(told, [one("b").because(Sure::Likely, "why")]);
    }
}
