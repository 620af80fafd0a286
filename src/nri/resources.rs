//! Limits, as an OCI specification has them and as NRI has them.

use protobuf::MessageField;
use serde_json::{Value, json};

use super::api::{
    HugepageLimit, LinuxCPU, LinuxDeviceCgroup, LinuxMemory, LinuxPids, LinuxResources,
    OptionalBool, OptionalInt64, OptionalUInt64,
};
use super::claims::Field;

/// A limit that is wanted: which, its place in `linux.resources`, its value.
pub(super) struct Limit {
    pub(super) field: Field,
    pub(super) place: [&'static str; 2],
    pub(super) value: Value,
}

/// What is one value each. Lists and tables are not among it.
pub(super) fn limits(wanted: &LinuxResources) -> Vec<Limit> {
    let mut all = Vec::new();
    let mut add = |field, place, value: Option<Value>| {
        all.extend(value.map(|value| Limit { field, place, value }));
    };
    if let Some(memory) = wanted.memory.as_ref() {
        let limit = signed(&memory.limit);
        add(Field::MemLimit, ["memory", "limit"], limit.clone());
        // One without the other is refused by the kernel where the limit grows: NRI sets both.
        let swap = signed(&memory.swap).or(limit);
        add(Field::MemSwapLimit, ["memory", "swap"], swap);
        add(Field::MemReservation, ["memory", "reservation"], signed(&memory.reservation));
        add(Field::MemKernelLimit, ["memory", "kernel"], signed(&memory.kernel));
        add(Field::MemTcpLimit, ["memory", "kernelTCP"], signed(&memory.kernel_tcp));
        add(Field::MemSwappiness, ["memory", "swappiness"], unsigned(&memory.swappiness));
        let disable = flag(&memory.disable_oom_killer);
        add(Field::MemDisableOomKiller, ["memory", "disableOOMKiller"], disable);
        add(Field::MemUseHierarchy, ["memory", "useHierarchy"], flag(&memory.use_hierarchy));
    }
    if let Some(cpu) = wanted.cpu.as_ref() {
        let text = |text: &str| (!text.is_empty()).then(|| json!(text));
        add(Field::CpuShares, ["cpu", "shares"], unsigned(&cpu.shares));
        add(Field::CpuQuota, ["cpu", "quota"], signed(&cpu.quota));
        add(Field::CpuPeriod, ["cpu", "period"], unsigned(&cpu.period));
        let (runtime, period) = (signed(&cpu.realtime_runtime), unsigned(&cpu.realtime_period));
        add(Field::CpuRealtimeRuntime, ["cpu", "realtimeRuntime"], runtime);
        add(Field::CpuRealtimePeriod, ["cpu", "realtimePeriod"], period);
        add(Field::CpusetCpus, ["cpu", "cpus"], text(&cpu.cpus));
        add(Field::CpusetMems, ["cpu", "mems"], text(&cpu.mems));
    }
    let pids = wanted.pids.as_ref().map(|pids| json!(pids.limit));
    add(Field::PidsLimit, ["pids", "limit"], pids);
    all
}

fn signed(number: &MessageField<OptionalInt64>) -> Option<Value> {
    number.as_ref().map(|number| json!(number.value))
}

fn unsigned(number: &MessageField<OptionalUInt64>) -> Option<Value> {
    number.as_ref().map(|number| json!(number.value))
}

fn flag(flag: &MessageField<OptionalBool>) -> Option<Value> {
    flag.as_ref().map(|flag| json!(flag.value))
}

/// A rule for devices, as an OCI specification has it.
pub(super) fn device_rule(rule: &LinuxDeviceCgroup) -> Value {
    let mut value = json!({"allow": rule.allow, "type": rule.type_, "access": rule.access});
    for (key, number) in [("major", &rule.major), ("minor", &rule.minor)] {
        if let Some(number) = signed(number) {
            value[key] = number;
        }
    }
    value
}

/// The limits of a specification, from its `linux.resources`.
pub(super) fn message(resources: &Value) -> LinuxResources {
    let (memory, cpu) = (part(resources, "memory"), part(resources, "cpu"));
    let memory = memory.map(|memory| LinuxMemory {
        limit: int(memory, "limit"),
        reservation: int(memory, "reservation"),
        swap: int(memory, "swap"),
        kernel: int(memory, "kernel"),
        kernel_tcp: int(memory, "kernelTCP"),
        swappiness: uint(memory, "swappiness"),
        disable_oom_killer: boolean(memory, "disableOOMKiller"),
        use_hierarchy: boolean(memory, "useHierarchy"),
        ..LinuxMemory::default()
    });
    let text =
        |from: &Value, key| from.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let cpu = cpu.map(|cpu| LinuxCPU {
        shares: uint(cpu, "shares"),
        quota: int(cpu, "quota"),
        period: uint(cpu, "period"),
        realtime_runtime: int(cpu, "realtimeRuntime"),
        realtime_period: uint(cpu, "realtimePeriod"),
        cpus: text(cpu, "cpus"),
        mems: text(cpu, "mems"),
        ..LinuxCPU::default()
    });
    let pids = part(resources, "pids").and_then(|pids| pids.get("limit")?.as_i64());
    let pages = each(resources, "hugepageLimits").map(|page| HugepageLimit {
        page_size: text(page, "pageSize"),
        limit: page.get("limit").and_then(Value::as_u64).unwrap_or_default(),
        ..HugepageLimit::default()
    });
    let rules = each(resources, "devices").map(|rule| LinuxDeviceCgroup {
        allow: rule.get("allow").and_then(Value::as_bool).unwrap_or_default(),
        type_: text(rule, "type"),
        major: int(rule, "major"),
        minor: int(rule, "minor"),
        access: text(rule, "access"),
        ..LinuxDeviceCgroup::default()
    });
    let unified = part(resources, "unified").and_then(Value::as_object).into_iter().flatten();
    let unified = unified.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.into())));
    LinuxResources {
        memory: memory.into(),
        cpu: cpu.into(),
        hugepage_limits: pages.collect(),
        unified: unified.collect(),
        devices: rules.collect(),
        pids: pids.map(|limit| LinuxPids { limit, ..LinuxPids::default() }).into(),
        ..LinuxResources::default()
    }
}

fn part<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    value.get(key).filter(|value| !value.is_null())
}

fn each<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> + use<'a> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn int(from: &Value, key: &str) -> MessageField<OptionalInt64> {
    let value = from.get(key).and_then(Value::as_i64);
    value.map(|value| OptionalInt64 { value, ..OptionalInt64::default() }).into()
}

fn uint(from: &Value, key: &str) -> MessageField<OptionalUInt64> {
    let value = from.get(key).and_then(Value::as_u64);
    value.map(|value| OptionalUInt64 { value, ..OptionalUInt64::default() }).into()
}

fn boolean(from: &Value, key: &str) -> MessageField<OptionalBool> {
    let value = from.get(key).and_then(Value::as_bool);
    value.map(|value| OptionalBool { value, ..OptionalBool::default() }).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_plugin_is_shown_is_what_it_may_ask_for() {
        let resources = json!({
            "memory": {"limit": 1 << 30, "swap": 1 << 31, "swappiness": 7, "disableOOMKiller": true},
            "cpu": {"shares": 512, "quota": -1, "period": 100_000, "cpus": "0-1"},
            "pids": {"limit": 64},
        });
        let mut again = json!({});
        for limit in limits(&message(&resources)) {
            again[limit.place[0]][limit.place[1]] = limit.value;
        }
        assert_eq!(again, resources);
    }

    #[test]
    fn a_limit_of_memory_is_one_of_memory_and_swap() {
        let mut wanted = LinuxResources::default();
        wanted.memory.mut_or_insert_default().limit.mut_or_insert_default().value = 5;
        let all: Vec<_> =
            limits(&wanted).into_iter().map(|one| (one.place[1], one.value)).collect();
        assert_eq!(all, [("limit", json!(5)), ("swap", json!(5))]);
    }

    #[test]
    fn rules_for_devices_and_tables_are_shown() {
        let rule = json!({"allow": true, "type": "c", "access": "rw", "major": 1});
        let shown = message(&json!({
            "devices": [rule], "unified": {"memory.high": "9"},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
        }));
        assert_eq!(device_rule(&shown.devices[0]), rule);
        assert_eq!(shown.unified["memory.high"], "9");
        assert_eq!(
            (shown.hugepage_limits[0].page_size.as_str(), shown.hugepage_limits[0].limit),
            ("2MB", 4)
        );
        assert!(shown.memory.is_none() && shown.pids.is_none());
    }
}
