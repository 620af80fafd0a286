//! Values as text: in the format of OpenMetrics, and in Prometheus' own for those who do not ask for that.

use std::fmt;

use mooring::telemetry::{BOUNDS_MS, Series};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text, text},
    registry::Registry,
};

use super::{
    families,
    samples::{Sample, Value},
};

/// How values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    OpenMetrics,
    Prometheus,
}

const OPEN_METRICS: &str = "application/openmetrics-text";

impl Format {
    /// What a client takes, by the header Accept of its request.
    pub fn accepted(header: Option<&str>) -> Self {
        let open = header.is_some_and(|header| header.contains(OPEN_METRICS));
        if open { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// What it is called over HTTP.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// The samples as text, family by family.
pub fn text(samples: Vec<Sample>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Samples(samples)));
    let mut text = String::new();
    match format {
        Format::OpenMetrics => text::encode(&mut text, &registry)?,
        Format::Prometheus => prometheus_text::encode(&mut text, &registry)?,
    }
    Ok(text)
}

struct Samples(Vec<Sample>);

impl fmt::Debug for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} samples", self.0.len())
    }
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in families::ALL {
            let samples: Vec<_> =
                self.0.iter().filter(|one| one.family.name == family.name).collect();
            if samples.is_empty() {
                continue;
            }
            let mut metric =
                encoder.encode_descriptor(family.name, family.help, None, family.kind)?;
            for sample in samples {
                if sample.labels.is_empty() {
                    value(&mut metric, &sample.value)?;
                } else {
                    let mut labelled = metric.encode_family(&sample.labels)?;
                    value(&mut labelled, &sample.value)?;
                }
            }
        }
        Ok(())
    }
}

fn value(metric: &mut MetricEncoder<'_>, value: &Value) -> fmt::Result {
    match value {
        Value::Gauge(number) => metric.encode_gauge(number),
        Value::Count(number) => metric.encode_counter::<NoLabelSet, _, f64>(number, None),
        Value::Histogram(series) => {
            let buckets = buckets(series);
            metric.encode_histogram::<NoLabelSet>(
                series.total.as_secs_f64(),
                series.count,
                &buckets,
                None,
            )
        }
    }
}

/// How many there are up to each bound in seconds, and above the bound before it.
fn buckets(series: &Series) -> Vec<(f64, u64)> {
    #[expect(clippy::cast_precision_loss, reason = "the bounds are small")]
    let seconds = |ms: u64| ms as f64 / 1e3;
    let within = BOUNDS_MS.iter().zip(series.within);
    let mut all: Vec<_> = within.map(|(ms, count)| (seconds(*ms), u64::from(count))).collect();
    let counted: u64 = all.iter().map(|(_, count)| count).sum();
    all.push((f64::INFINITY, series.count.saturating_sub(counted)));
    all
}
