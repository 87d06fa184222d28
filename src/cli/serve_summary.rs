//! What `serve` says when it is ready: models, memory, address, and lines to copy.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use millgate_kernels::Level;

use crate::app::{LoadedModel, ModelLine, Summary};
use crate::config::ByteSize;

use super::output::number;

/// The summary as text; with the first key the lines to copy work as they are.
pub(super) fn summary_text(summary: &Summary, first_key: Option<&str>) -> String {
    let url = format!("http://{}", reachable(summary.listen));
    let mut text = format!("\nMillgate {} is ready at {url}\n\n", env!("CARGO_PKG_VERSION"));
    for model in &summary.models {
        let _ = writeln!(text, "  model    {:<12} {}", model.name, model_text(model));
    }
    let _ = writeln!(text, "  cpu      {} threads, {}", summary.threads, instructions(summary.instruction_set));
    let _ = writeln!(text, "  data     {}", summary.data_dir.display());
    if let Some(ops) = summary.ops_listen {
        let _ = writeln!(text, "  probes   http://{}", reachable(ops));
    }
    let ready = summary.models.iter().find(|model| model.outcome.is_ok());
    if let Some(model) = ready {
        let key = first_key.unwrap_or("$MILLGATE_API_KEY");
        let _ = write!(
            text,
            "\nTry it:\n\n  curl {url}/v1/chat/completions \\\n    -H \"Authorization: Bearer {key}\" -H 'Content-Type: application/json' \\\n    \
             -d '{{\"model\": \"{}\", \"messages\": [{{\"role\": \"user\", \"content\": \"What is a tier?\"}}]}}'\n\nor\n\n  millgate chat --url {url} --key {key}\n",
            model.name
        );
    }
    text
}

fn model_text(model: &ModelLine) -> String {
    match &model.outcome {
        Ok(LoadedModel {
            description, device, memory_bytes, weight_bytes, free_bytes, kv_bytes, kv_tokens, ..
        }) => {
            let rest = free_bytes.map(|free| format!("; {} left on {device}", ByteSize(free))).unwrap_or_default();
            format!(
                "{description}\n           {:<12} {} of memory: {} of weights, {} of KV cache for {} tokens{rest}",
                "",
                ByteSize(*memory_bytes),
                ByteSize(*weight_bytes),
                ByteSize(*kv_bytes),
                number(*kv_tokens as u64)
            )
        }
        Err(reason) => format!("NOT SERVED: {reason}"),
    }
}

fn instructions(level: Level) -> &'static str {
    match level {
        Level::Scalar => "no vector instructions that Millgate knows (expect it to be slow)",
        Level::Avx2 => "AVX2",
        Level::Avx512 => "AVX-512 with VNNI",
        Level::Avx512Bf16 => "AVX-512 with VNNI and bf16",
        Level::Amx => "AVX-512 with VNNI and bf16, AMX",
    }
}

/// An address that a client on this machine can use: the wildcard is none.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> Summary {
        let loaded = LoadedModel {
            description: "llama, 3.9 M parameters in bf16".into(),
            device: "cuda:0: NVIDIA L4, 22.0 GiB".into(),
            memory_bytes: 3 << 29,
            weight_bytes: 1 << 28,
            free_bytes: Some(5 << 30),
            kv_bytes: 1 << 30,
            kv_tokens: 65_536,
            context_window: 2048,
        };
        Summary {
            listen: "0.0.0.0:8080".parse().unwrap(),
            ops_listen: None,
            data_dir: "millgate-data".into(),
            threads: 2,
            instruction_set: Level::Avx2,
            models: vec![
                ModelLine { name: "broken".into(), source: "x.gguf".into(), outcome: Err("no such file".into()) },
                ModelLine { name: "demo".into(), source: "builtin:demo".into(), outcome: Ok(loaded) },
            ],
        }
    }

    #[test]
    fn the_summary_tells_figures_and_has_a_line_that_works_when_copied() {
        let text = summary_text(&summary(), Some("sk-mg_x"));
        for part in [
            "http://127.0.0.1:8080",
            "1.5GiB of memory: 256MiB of weights, 1GiB of KV cache for 65,536 tokens; 5GiB left on cuda:0: NVIDIA L4, 22.0 GiB",
            "NOT SERVED: no such file",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert!(text.contains("Bearer sk-mg_x") && text.contains("\"model\": \"demo\""), "{text}");
        assert!(summary_text(&summary(), None).contains("Bearer $MILLGATE_API_KEY"));
    }
}
