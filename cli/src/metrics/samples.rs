//! What is seen, as values of metrics.

use std::collections::BTreeMap;

use mooring::{
    inspect::{Outcome, Step},
    sandbox::survey::Hands,
    telemetry::Series,
};

use super::{
    families::{self as all, Family, POD, POD_LABELS},
    scrape::{One, Seen},
    sums::{RETRIES, Sums},
};
use crate::{holdings::tag, ls};

/// A step that has taken so long is said to hang, in nanoseconds.
const HUNG: i64 = 10_000_000_000;

/// One value.
pub struct Sample {
    pub family: Family,
    pub labels: Vec<(&'static str, String)>,
    pub value: Value,
}

pub enum Value {
    Gauge(f64),
    Count(u64),
    Histogram(Series),
}

/// All values; with `pods` those of each pod by itself.
pub fn of(seen: &Seen, sums: &Sums, pods: bool) -> Vec<Sample> {
    let mut list = List(Vec::new());
    list.gauge(all::BUILD, vec![env!("CARGO_PKG_VERSION").into()], 1);
    list.sandboxes(seen);
    list.shims(seen, pods);
    list.sums(sums);
    list.steps(seen);
    if pods {
        seen.sandboxes.iter().for_each(|one| list.network(one));
    }
    list.0
}

struct List(Vec<Sample>);

impl List {
    fn push(&mut self, family: Family, values: Vec<String>, value: Value) {
        let names = family.labels.iter().flat_map(|name| match *name {
            POD => POD_LABELS.to_vec(),
            other => vec![other],
        });
        // A value that has fewer labels is one of all pods together.
        let labels = if values.is_empty() { Vec::new() } else { names.zip(values).collect() };
        self.0.push(Sample { family, labels, value });
    }

    fn gauge(&mut self, family: Family, values: Vec<String>, value: u64) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a number with a fraction")]
        self.push(family, values, Value::Gauge(value as f64));
    }

    fn sandboxes(&mut self, seen: &Seen) {
        let mut states = BTreeMap::<(String, String), u64>::new();
        let mut containers = BTreeMap::<String, u64>::new();
        let (mut left, mut unsure) = (0, 0);
        for one in &seen.sandboxes {
            let runtime = one.said.as_ref().map(|said| said.runtime_type.clone());
            let state = match &one.said {
                Some(said) => ls::State::said(said.state.enum_value_or_default()),
                None => ls::State::of(&one.found),
            };
            let state = tag(&state).unwrap_or_default();
            *states.entry((runtime.unwrap_or_default(), state)).or_default() += 1;
            for container in one.said.iter().flat_map(|said| &said.containers) {
                *containers.entry(container.state.clone()).or_default() += 1;
            }
            left += u64::from(one.found.hands == Hands::Nobody);
            unsure += u64::from(matches!(one.found.hands, Hands::Unsure(_)));
        }
        for ((runtime, state), count) in states {
            self.gauge(all::SANDBOXES, vec![runtime, state], count);
        }
        for (state, count) in containers {
            self.gauge(all::CONTAINERS, vec![state], count);
        }
        self.gauge(all::LEAKS, vec![], left);
        self.gauge(all::UNSURE, vec![], unsure);
    }

    fn shims(&mut self, seen: &Seen, pods: bool) {
        let living = || seen.sandboxes.iter().filter(|one| one.found.hands == Hands::Shim);
        let answering = living().filter(|one| one.said.is_some()).count() as u64;
        let silent = living().count() as u64 - answering;
        self.gauge(all::SHIMS, vec!["true".into()], answering);
        self.gauge(all::SHIMS, vec!["false".into()], silent);
        let (mut memory, mut descriptors) = (0, 0);
        for one in living() {
            let Some(said) = &one.said else { continue };
            let (pss, open) = (said.shim.pss, u64::from(said.shim.descriptors));
            if pods {
                self.gauge(all::SHIM_MEMORY, pod(one), pss);
                self.gauge(all::SHIM_DESCRIPTORS, pod(one), open);
            }
            memory += pss;
            descriptors += open;
        }
        if !pods {
            self.gauge(all::SHIM_MEMORY, vec![], memory);
            self.gauge(all::SHIM_DESCRIPTORS, vec![], descriptors);
        }
    }

    fn sums(&mut self, sums: &Sums) {
        for (family, name) in [
            (all::CREATE, "sandbox_start"),
            (all::STOP, "sandbox_stop"),
            (all::REMOVE, "sandbox_remove"),
        ] {
            for (runtime, series) in sums.named(name, |(runtime, ..)| runtime.clone()) {
                self.push(family, vec![runtime], Value::Histogram(series));
            }
        }
        for (family, name) in
            [(all::CREATE_NETWORK, "network_create"), (all::DELETE_NETWORK, "teardown_network")]
        {
            for ((), series) in sums.named(name, |_| ()) {
                self.push(family, vec![], Value::Histogram(series));
            }
        }
        for (name, kind) in [
            ("cni_add", "set_up_pod"),
            ("cni_del", "tear_down_pod"),
            ("cni_status", "status"),
            ("cni_gc", "gc"),
        ] {
            for (plugin, series) in sums.named(name, |(_, _, plugin)| plugin.clone()) {
                let labels = || vec![kind.to_owned(), plugin.clone()];
                self.push(all::PLUGIN, labels(), Value::Count(series.count));
                self.push(all::PLUGIN_ERRORS, labels(), Value::Count(series.errors));
                self.push(all::PLUGIN_SECONDS, labels(), Value::Histogram(series));
            }
        }
        let steps: std::collections::BTreeSet<&String> =
            sums.0.keys().map(|(_, name, _)| name).collect();
        for name in steps {
            let Some(step) = name.strip_prefix("teardown_") else { continue };
            if !mooring::resources::PLAN.iter().any(|line| line.step.name() == step) {
                continue;
            }
            for ((), series) in sums.named(name, |_| ()) {
                self.push(all::STEP, vec![step.to_owned()], Value::Histogram(series));
                self.push(all::STEP_ERRORS, vec![step.to_owned()], Value::Count(series.errors));
            }
        }
        for (means, series) in sums.named("container_stop", |(_, _, means)| means.clone()) {
            self.push(all::STOPPED, vec![means], Value::Count(series.count));
        }
        for (family, name) in [
            (all::RETRIES, RETRIES),
            (all::RESUMED, "teardown_resumed"),
            (all::LEAKS_FREED, "leak_freed"),
        ] {
            let count = sums.named(name, |_| ()).values().map(|series| series.count).sum();
            self.push(family, vec![], Value::Count(count));
        }
    }

    fn steps(&mut self, seen: &Seen) {
        let mut under_way = BTreeMap::<String, (i64, u64)>::new();
        let mut failed = BTreeMap::<String, u64>::new();
        for said in seen.sandboxes.iter().filter_map(|one| one.said.as_ref()) {
            if let Some(step) = said.current.as_ref() {
                let (slowest, hung) = under_way.entry(step.name.clone()).or_default();
                *slowest = step.took.max(*slowest);
                *hung += u64::from(step.took >= HUNG);
            } else if let Some(step) = said.steps.iter().find(|step| has_failed(step)) {
                *failed.entry(step.name.clone()).or_default() += 1;
            }
        }
        for (step, (slowest, hung)) in under_way {
            #[expect(clippy::cast_precision_loss, reason = "seconds with a fraction")]
            let seconds = slowest as f64 / 1e9;
            self.push(all::STEP_SLOWEST, vec![step.clone()], Value::Gauge(seconds));
            self.gauge(all::HUNG, vec![step], hung);
        }
        for (step, count) in failed {
            self.gauge(all::FAILED, vec![step], count);
        }
    }

    fn network(&mut self, one: &One) {
        for interface in &one.interfaces {
            let (received, sent) = (interface.received, interface.sent);
            for (family, count) in [
                (all::RECEIVED_BYTES, received.bytes),
                (all::RECEIVED_PACKETS, received.packets),
                (all::RECEIVED_DROPPED, received.dropped),
                (all::RECEIVED_ERRORS, received.errors),
                (all::SENT_BYTES, sent.bytes),
                (all::SENT_PACKETS, sent.packets),
                (all::SENT_DROPPED, sent.dropped),
                (all::SENT_ERRORS, sent.errors),
            ] {
                let mut labels = pod(one);
                labels.push(interface.name.clone());
                self.push(family, labels, Value::Count(count));
            }
        }
    }
}

fn has_failed(step: &Step) -> bool {
    step.outcome.enum_value() == Ok(Outcome::FAILED)
}

/// The labels of a pod; empty where its client names none.
fn pod(one: &One) -> Vec<String> {
    let named = one.said.as_ref().and_then(|said| said.pod.as_ref());
    let (name, namespace) =
        named.map(|pod| (pod.name.clone(), pod.namespace.clone())).unwrap_or_default();
    vec![one.found.id.to_string(), name, namespace]
}

#[cfg(test)]
mod tests;
