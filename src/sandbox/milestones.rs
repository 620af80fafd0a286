//! The events of a teardown's span, named as those in which containerd's own stop of a pod tells how far it is.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    id::Id,
    teardown::{Observer, Outcome, Step, StepReport, TeardownError},
    telemetry::trace::{Open, Span},
};

/// Steps that are one thing to whoever knows containerd's own stop: what is said when the first of them begins and when
/// the last has ended, and the name of the time between.
struct Stretch {
    steps: &'static [&'static str],
    begun: &'static str,
    ended: &'static str,
    took: &'static str,
}

const STRETCHES: [Stretch; 2] = [
    Stretch {
        steps: &["containers", "keeper"],
        begun: "stopping containers in the sandbox",
        ended: "sandbox container stopped",
        took: "sandbox.stop.duration",
    },
    Stretch {
        steps: &["network", "netns"],
        begun: "start pod network teardown",
        ended: "finished pod network teardown",
        took: "network.teardown.duration",
    },
];

/// Says them on the span of one teardown, which is a part of what this task works under.
pub(super) struct Milestones {
    span: Open,
    under_way: Mutex<Option<UnderWay>>,
}

struct UnderWay {
    stretch: &'static Stretch,
    since: Instant,
    took: Duration,
}

impl Milestones {
    /// The teardown of this sandbox begins, or goes on.
    pub(super) fn begin(sandbox: &Id) -> Self {
        let span = Span::current().operation("teardown");
        span.set("sandbox.id", sandbox.as_str());
        Self { span, under_way: Mutex::default() }
    }

    pub(super) fn span(&self) -> &Span {
        &self.span
    }

    /// It has come to an end.
    pub(super) fn end(self, result: &Result<(), TeardownError>) {
        self.next(None);
        if let Err(error) = result {
            self.span.fail(error);
        }
    }

    /// A step of `stretch` comes next: what it is not part of has ended before.
    fn next(&self, stretch: Option<&'static Stretch>) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let goes_on = |now: &UnderWay| stretch.is_some_and(|next| std::ptr::eq(next, now.stretch));
        if under_way.as_ref().is_some_and(goes_on) {
            return;
        }
        if let Some(UnderWay { stretch, took, .. }) = under_way.take() {
            self.span
                .event_with(stretch.ended, || Some((stretch.took.into(), as_in_go(took).into())));
        }
        if let Some(stretch) = stretch {
            self.span.event(stretch.begun);
            *under_way = Some(UnderWay { stretch, since: Instant::now(), took: Duration::ZERO });
        }
    }
}

impl Observer for Milestones {
    fn begun(&self, step: Step) {
        if self.span.is_recorded() {
            self.next(STRETCHES.iter().find(|stretch| stretch.steps.contains(&step.name())));
        }
    }

    fn ended(&self, report: StepReport) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *under_way, report.outcome) {
            // It was not reached.
            (_, Outcome::Failed(_)) => *under_way = None,
            (Some(now), _) => now.took = now.since.elapsed(),
            (None, _) => {}
        }
    }
}

/// A time as Go writes it, which the reference does: `1.5s`, `2m3s`, `417.25ms`.
fn as_in_go(time: Duration) -> String {
    let with_fraction = |nanos: u128, unit: u32, name: &str| {
        let whole = nanos / 10_u128.pow(unit);
        let digits = unit as usize;
        let rest = format!(".{:0digits$}", nanos % 10_u128.pow(unit));
        format!("{whole}{}{name}", rest.trim_end_matches('0').trim_end_matches('.'))
    };
    let nanos = time.as_nanos();
    match nanos {
        0 => "0s".to_owned(),
        1..1_000 => format!("{nanos}ns"),
        1_000..1_000_000 => with_fraction(nanos, 3, "µs"),
        1_000_000..1_000_000_000 => with_fraction(nanos, 6, "ms"),
        _ => {
            let (hours, minutes) = (time.as_secs() / 3600, time.as_secs() / 60 % 60);
            let seconds = with_fraction(nanos % 60_000_000_000, 9, "s");
            match (hours, minutes) {
                (0, 0) => seconds,
                (0, _) => format!("{minutes}m{seconds}"),
                _ => format!("{hours}h{minutes}m{seconds}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        resources::PLAN,
        telemetry::trace::{Kind, Sampler, testing::Kept},
    };

    /// The events of a teardown that comes to these steps, of which the last fails or not.
    async fn events(steps: &[&str], fails: bool) -> Vec<&'static str> {
        let (tracer, kept) = Kept::tracer(Sampler::Always);
        let call = tracer.entry("stop", Kind::Server, None);
        let begun = call.within(async { Milestones::begin(&Id::new("web").unwrap()) });
        let milestones = begun.await;
        for (index, name) in steps.iter().enumerate() {
            let step = PLAN.iter().find(|line| line.step.name() == *name).unwrap().step;
            milestones.begun(step);
            let failed = fails && index + 1 == steps.len();
            let outcome = if failed { Outcome::Failed("no".into()) } else { Outcome::Done };
            milestones.ended(StepReport { step, outcome, took: Duration::ZERO });
        }
        milestones.end(&Ok(()));
        let [span] = &kept.take()[..] else { panic!() };
        assert_eq!((&*span.name, &span.attributes[0].1), ("teardown", &"web".into()));
        for event in &span.events {
            let told = event.attributes.iter().any(|(key, _)| key.ends_with(".duration"));
            assert_eq!(told, event.name.ends_with("stopped") || event.name.contains("finished"));
        }
        span.events.iter().map(|event| event.name).collect()
    }

    #[tokio::test]
    async fn a_teardown_tells_how_far_it_is_as_the_reference_does() {
        let stop = ["stopping containers in the sandbox", "sandbox container stopped"];
        let network = ["start pod network teardown", "finished pod network teardown"];
        let whole: Vec<&str> = PLAN.iter().map(|line| line.step.name()).collect();
        assert_eq!(events(&whole, false).await, [stop, network].concat());
        // Where the network is the client's, and where there is nothing left but it.
        assert_eq!(events(&["door", "containers", "keeper", "shm"], false).await, stop);
        assert_eq!(events(&["door", "containers"], false).await, stop);
        assert_eq!(events(&["network"], false).await, network);
    }

    #[tokio::test]
    async fn what_failed_is_not_told_as_reached() {
        assert_eq!(events(&["containers"], true).await, ["stopping containers in the sandbox"]);
        let all = events(&["containers", "keeper", "network"], true).await;
        assert_eq!(all.last(), Some(&"start pod network teardown"));
    }

    #[test]
    fn times_are_written_as_go_does() {
        for (nanos, text) in [
            (0, "0s"),
            (17, "17ns"),
            (1_500, "1.5µs"),
            (417_250_000, "417.25ms"),
            (5_000_000_000, "5s"),
            (1_000_000_001, "1.000000001s"),
            (123_500_000_000, "2m3.5s"),
            (3_600_000_000_000, "1h0m0s"),
        ] {
            assert_eq!(as_in_go(Duration::from_nanos(nanos)), text);
        }
    }
}
