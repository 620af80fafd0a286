use std::time::Duration;

use mooring::{
    id::Id,
    inspect::{Container, GetResponse, Pod, Process, Series as Said, State},
    network::counters::{Counters, Interface},
    sandbox::{daemon_record::DaemonRecord, survey::Found},
    telemetry::{Telemetry, totals::Total},
};

use super::*;
use crate::metrics::expose::{Format, text};

fn found(id: &str, hands: Hands) -> Found {
    Found {
        namespace: Id::new("k8s.io").unwrap(),
        id: Id::new(id).unwrap(),
        folder: format!("/state/{id}").into(),
        shim: Some(DaemonRecord { pid: 7, start_time: 1, socket: None, boot: None }),
        journal: None,
        containers: Vec::new(),
        written: None,
        hands,
    }
}

fn seen() -> Seen {
    let telemetry = Telemetry::default();
    telemetry.observe("sandbox_stop", "", Duration::from_millis(30), false);
    telemetry.observe("sandbox_stop", "", Duration::from_mins(2), true);
    let stops = telemetry.all().into_iter().map(|(name, subject, series)| Total {
        runtime: "io.containerd.mooring.v1".into(),
        name,
        subject,
        series,
    });
    let operation = |name: &str, subject: &str| Said {
        name: name.into(),
        subject: subject.into(),
        count: 1,
        errors: 1,
        total: 4_000_000,
        longest: 4_000_000,
        within: vec![0, 0, 1],
        ..Said::default()
    };
    let hanging = Step { name: "network".into(), took: 12_500_000_000, ..Step::default() };
    let container = Container { id: "c".into(), state: "running".into(), ..Container::default() };
    let pod = Pod { name: "web-0".into(), namespace: "shop".into(), ..Pod::default() };
    let said = GetResponse {
        state: State::STOPPING.into(),
        runtime_type: "io.containerd.mooring.v1".into(),
        pod: Some(pod).into(),
        current: Some(hanging).into(),
        containers: vec![container],
        operations: vec![
            operation("cni_del", "bridge"),
            operation("teardown_keeper", ""),
            operation("a_thing_of_a_later_release", ""),
        ],
        shim: Some(Process { pss: 430_080, descriptors: 14, ..Process::default() }).into(),
        teardowns: 2,
        ..GetResponse::default()
    };
    let received = Counters { bytes: 1500, packets: 10, ..Counters::default() };
    let interfaces = vec![Interface { name: "eth0".into(), received, sent: Counters::default() }];
    Seen {
        sandboxes: vec![
            One { found: found("a", Hands::Shim), said: Some(said), interfaces },
            One { found: found("b", Hands::Nobody), said: None, interfaces: Vec::new() },
        ],
        totals: stops.collect(),
        complaints: Vec::new(),
    }
}

fn told(pods: bool) -> Vec<String> {
    let seen = seen();
    let text = text(of(&seen, &Sums::now(&seen), pods), Format::OpenMetrics).unwrap();
    assert!(text.ends_with("# EOF\n"), "{text}");
    text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

#[test]
fn the_numbers_are_as_they_were() {
    let stop = "mooring_sandbox_runtime_stop_seconds";
    let of = "runtime=\"io.containerd.mooring.v1\"";
    let told = told(false);
    for line in [
        format!("mooring_sandboxes{{{of},state=\"stopping\"}} 1.0"),
        "mooring_sandboxes{runtime=\"\",state=\"left\"} 1.0".into(),
        "mooring_containers{state=\"running\"} 1.0".into(),
        "mooring_shims{answers=\"true\"} 1.0".into(),
        "mooring_shim_memory_bytes 430080.0".into(),
        format!("{stop}_count{{{of}}} 2"),
        format!("{stop}_sum{{{of}}} 120.03"),
        format!("{stop}_bucket{{le=\"0.025\",{of}}} 0"),
        format!("{stop}_bucket{{le=\"0.05\",{of}}} 1"),
        format!("{stop}_bucket{{le=\"60.0\",{of}}} 1"),
        format!("{stop}_bucket{{le=\"+Inf\",{of}}} 2"),
        "mooring_network_plugin_operations_total{operation_type=\"tear_down_pod\",plugin=\"bridge\"} 1".into(),
        "mooring_network_plugin_operations_errors_total{operation_type=\"tear_down_pod\",plugin=\"bridge\"} 1".into(),
        "mooring_teardown_step_seconds_count{step=\"keeper\"} 1".into(),
        "mooring_teardown_steps_hung{step=\"network\"} 1.0".into(),
        "mooring_teardown_step_under_way_seconds{step=\"network\"} 12.5".into(),
        "mooring_teardown_retries_total 1".into(),
        "mooring_leaks 1.0".into(),
    ] {
        assert!(told.contains(&line), "{line} is not in\n{}", told.join("\n"));
    }
    assert!(!told.iter().any(|line| line.contains("later_release") || line.contains("sandbox_id")));
}

#[test]
fn pods_have_labels_where_that_is_asked_for() {
    let told = told(true);
    let of = "sandbox_id=\"a\",pod=\"web-0\",namespace=\"shop\"";
    for line in [
        format!("mooring_shim_memory_bytes{{{of}}} 430080.0"),
        format!("container_network_receive_bytes_total{{{of},interface=\"eth0\"}} 1500"),
        format!("container_network_receive_packets_total{{{of},interface=\"eth0\"}} 10"),
        format!("container_network_transmit_errors_total{{{of},interface=\"eth0\"}} 0"),
    ] {
        assert!(told.contains(&line), "{line} is not in\n{}", told.join("\n"));
    }
}

#[test]
fn every_value_has_the_labels_of_its_family() {
    let seen = seen();
    for pods in [false, true] {
        for sample in of(&seen, &Sums::now(&seen), pods) {
            let names = sample.family.labels;
            let wanted = names.iter().map(|name| if *name == POD { 3 } else { 1 }).sum::<usize>();
            let of_all = sample.labels.is_empty() && names == [POD];
            assert!(of_all || sample.labels.len() == wanted, "{}", sample.family.name);
        }
    }
}
