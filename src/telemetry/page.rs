//! The page a scraper reads: Prometheus' text format 0.0.4, or OpenMetrics 1.0.0 for whoever asks for it.

use std::fmt::Write;

use super::instruments::Distribution;

/// How the page is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageFormat {
    /// Text format 0.0.4: what is understood everywhere.
    Prometheus,
    /// OpenMetrics 1.0.0.
    OpenMetrics,
}

impl PageFormat {
    /// The format for an `Accept` header.
    pub fn accepted(accept: Option<&str>) -> Self {
        match accept {
            Some(accept) if accept.contains("application/openmetrics-text") => Self::OpenMetrics,
            _ => Self::Prometheus,
        }
    }

    /// The content type of a page.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// What kind of metric a family is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Its samples end in `_total`.
    Counter,
    /// A counter whose name dashboards know without `_total`.
    PlainCounter,
    Gauge,
    Histogram,
    /// Facts in labels; its sample ends in `_info`.
    Info,
}

/// A page being written.
#[derive(Debug)]
pub(crate) struct Page {
    out: String,
    format: PageFormat,
    name: &'static str,
    suffix: &'static str,
}

impl Page {
    pub(crate) fn new(format: PageFormat) -> Self {
        Self { out: String::with_capacity(32 << 10), format, name: "", suffix: "" }
    }

    /// Begins a family.
    pub(crate) fn family(&mut self, kind: Kind, name: &'static str, help: &str) -> &mut Self {
        let is_old = self.format == PageFormat::Prometheus;
        let (word, suffix) = match kind {
            Kind::Counter => ("counter", "_total"),
            Kind::PlainCounter => (if is_old { "counter" } else { "unknown" }, ""),
            Kind::Gauge => ("gauge", ""),
            Kind::Histogram => ("histogram", ""),
            Kind::Info => (if is_old { "gauge" } else { "info" }, "_info"),
        };
        // The old format knows the name of a sample only, the new one the name without its suffix.
        let shown = if is_old { suffix } else { "" };
        self.write(format_args!("# HELP {name}{shown} {help}\n# TYPE {name}{shown} {word}\n"));
        (self.name, self.suffix) = (name, suffix);
        self
    }

    /// Adds a sample to the family.
    pub(crate) fn sample(&mut self, labels: &[(&str, &str)], value: impl Into<Value>) {
        let (name, suffix) = (self.name, self.suffix);
        self.write(format_args!("{name}{suffix}"));
        self.labels(labels);
        match value.into() {
            Value::Whole(value) => self.write(format_args!(" {value}\n")),
            Value::Real(value) => self.write(format_args!(" {value}\n")),
        }
    }

    /// Adds the samples of a distribution to the family.
    pub(crate) fn distribution(&mut self, labels: &[(&str, &str)], read: &Distribution) {
        let name = self.name;
        let mut below = 0;
        for (count, bound) in read.counts.iter().zip(read.bounds.iter().copied().chain([f64::INFINITY])) {
            below += count;
            // OpenMetrics wants bounds written as floats, `1.0`; the old format takes them.
            let bound = if bound.is_finite() { format!("{bound:?}") } else { "+Inf".to_owned() };
            self.write(format_args!("{name}_bucket"));
            self.labels(&[labels, &[("le", &bound)]].concat());
            self.write(format_args!(" {below}\n"));
        }
        for (suffix, value) in [("_sum", Value::Real(read.sum)), ("_count", Value::from(below))] {
            self.write(format_args!("{name}{suffix}"));
            self.labels(labels);
            match value {
                Value::Whole(value) => self.write(format_args!(" {value}\n")),
                Value::Real(value) => self.write(format_args!(" {value}\n")),
            }
        }
    }

    /// The finished page.
    pub(crate) fn finish(mut self) -> String {
        if self.format == PageFormat::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }

    fn labels(&mut self, labels: &[(&str, &str)]) {
        if labels.is_empty() {
            return;
        }
        for (nth, (name, value)) in labels.iter().enumerate() {
            self.write(format_args!("{}{name}=\"", if nth == 0 { '{' } else { ',' }));
            for letter in value.chars() {
                match letter {
                    '\\' => self.out.push_str("\\\\"),
                    '"' => self.out.push_str("\\\""),
                    '\n' => self.out.push_str("\\n"),
                    other => self.out.push(other),
                }
            }
            self.out.push('"');
        }
        self.out.push('}');
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        self.out.write_fmt(text).expect("writing into a string cannot fail");
    }
}

/// A sample's value.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value {
    Whole(i128),
    Real(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value.into())
    }
}

impl From<i64> for Value {
    fn from(value: i64) -> Self {
        Self::Whole(value.into())
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Real(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::Histogram;
    use insta::assert_snapshot;

    fn page(format: PageFormat) -> String {
        let mut page = Page::new(format);
        page.family(Kind::Counter, "a", "All of it").sample(&[("who", "x\"\\\n")], 3u64);
        page.family(Kind::PlainCounter, "b", "As it was").sample(&[], 4u64);
        page.family(Kind::Info, "c", "Facts").sample(&[("version", "1")], 1u64);
        let histogram = Histogram::new(&[0.5, 1.0]);
        [0.25, 0.75, 7.0].into_iter().for_each(|value| histogram.observe(value));
        page.family(Kind::Histogram, "d_seconds", "Time").distribution(&[("m", "x")], &histogram.read());
        page.finish()
    }

    #[test]
    fn the_old_format_names_samples_and_the_new_one_families() {
        assert_snapshot!(page(PageFormat::Prometheus), @r##"
        # HELP a_total All of it
        # TYPE a_total counter
        a_total{who="x\"\\\n"} 3
        # HELP b As it was
        # TYPE b counter
        b 4
        # HELP c_info Facts
        # TYPE c_info gauge
        c_info{version="1"} 1
        # HELP d_seconds Time
        # TYPE d_seconds histogram
        d_seconds_bucket{m="x",le="0.5"} 1
        d_seconds_bucket{m="x",le="1.0"} 2
        d_seconds_bucket{m="x",le="+Inf"} 3
        d_seconds_sum{m="x"} 8
        d_seconds_count{m="x"} 3
        "##);
        let new = page(PageFormat::OpenMetrics);
        for line in ["# TYPE a counter", "a_total{", "# TYPE b unknown", "# TYPE c info", "c_info{version=\"1\"} 1"] {
            assert!(new.contains(line), "{line} is not in\n{new}");
        }
        assert!(new.ends_with("# EOF\n"));
    }

    #[test]
    fn only_who_asks_for_openmetrics_gets_it() {
        assert_eq!(PageFormat::accepted(None), PageFormat::Prometheus);
        assert_eq!(PageFormat::accepted(Some("*/*")), PageFormat::Prometheus);
        let wish = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1";
        assert_eq!(PageFormat::accepted(Some(wish)), PageFormat::OpenMetrics);
    }
}
