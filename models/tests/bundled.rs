//! The demo model inside the program is the one in `models/demo`.

use std::path::PathBuf;

use millgate_models::text::ChatMessage;
use millgate_models::{Checkpoint, Demo, Silent, Source};

use crate::rig::{Rig, bits, options};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("demo")
}

fn bundled() -> Checkpoint {
    Checkpoint::open_local(&Source::Builtin(Demo)).unwrap()
}

#[test]
fn the_bundled_model_equals_its_folder() {
    let bundled = bundled();
    let folder = Checkpoint::open_local(&Source::Folder(folder())).unwrap();
    assert_eq!(bundled.summary(), folder.summary());
    let (ours, theirs) = (bundled.text().unwrap(), folder.text().unwrap());
    assert_eq!(ours.end_tokens, theirs.end_tokens);
    let message = ChatMessage { role: "user".into(), content: "What is a tier? 🙂".into(), name: None };
    let prompt = ours.chat_template.unwrap().render(std::slice::from_ref(&message), true).unwrap();
    assert_eq!(prompt, theirs.chat_template.unwrap().render(&[message], true).unwrap());
    let ids = ours.tokenizer.encode_rendered(&prompt).unwrap();
    assert_eq!(ids, theirs.tokenizer.encode_rendered(&prompt).unwrap());
    assert_eq!(ours.tokenizer.encode(&prompt).unwrap(), theirs.tokenizer.encode(&prompt).unwrap());
    let mut rigs = [bundled, folder].map(|checkpoint| Rig::of(checkpoint.load(&options(), &Silent).unwrap()));
    let [first, second] = rigs.each_mut().map(|rig| bits(&rig.all_logits(&ids, ids.len())));
    assert!(first == second);
}

#[test]
fn the_bundled_model_answers_and_ends_by_itself() {
    let bundled = bundled();
    let text = bundled.text().unwrap();
    let message = ChatMessage { role: "user".into(), content: "What is Millgate?".into(), name: None };
    let prompt = text.chat_template.unwrap().render(&[message], true).unwrap();
    let ids = text.tokenizer.encode_rendered(&prompt).unwrap();
    let mut rig = Rig::of(bundled.load(&options(), &Silent).unwrap());
    let (answer, _) = rig.greedy(&ids, 120);
    let end = answer.iter().position(|token| text.end_tokens.contains(token));
    let answer = text.tokenizer.decode(&answer[..end.expect("an answer that ends")], true);
    assert!(answer.contains("Millgate"), "{answer}");
}
