//! What a tokenizer puts around a raw prompt: usually the begin token in front.

use serde_json::Value;

use super::TextError;
use super::pieces::MAX_TOKEN_IDS;

/// Token ids before and after a text.
///
/// Read from the `post_processor` here and not left to the library, which follows a broken one into a panic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Wrapping {
    pub(super) before: Vec<u32>,
    pub(super) after: Vec<u32>,
}

impl Wrapping {
    /// Reads the `post_processor` of a tokenizer.json.
    ///
    /// # Errors
    /// [`TextError::Unsupported`] names an unknown kind, [`TextError::Json`] says what is wrong with a known one.
    pub(super) fn from_post_processor(part: &Value) -> Result<Self, TextError> {
        let mut wrapping = Self::default();
        wrapping.read(part)?;
        Ok(wrapping)
    }

    fn read(&mut self, part: &Value) -> Result<(), TextError> {
        if part.is_null() {
            return Ok(());
        }
        match part.get("type").and_then(Value::as_str).unwrap_or("without a type") {
            // It moves offsets only.
            "ByteLevel" => Ok(()),
            "Sequence" => part
                .get("processors")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
                .try_for_each(|step| self.read(step)),
            "TemplateProcessing" => self.read_template(part),
            "RobertaProcessing" | "BertProcessing" => {
                let token = |name: &str| token_id(part.get(name).and_then(|pair| pair.get(1)));
                self.before.insert(0, token("cls")?);
                self.after.push(token("sep")?);
                Ok(())
            }
            other => Err(TextError::unsupported_in_json("post-processor", other)),
        }
    }

    fn read_template(&mut self, part: &Value) -> Result<(), TextError> {
        let pieces = part.get("single").and_then(Value::as_array).ok_or_else(|| problem("its template is no list"))?;
        let (mut before, mut after) = (Vec::new(), Vec::new());
        let mut texts = 0;
        for piece in pieces {
            if let Some(special) = piece.get("SpecialToken") {
                let name = special.get("id").and_then(Value::as_str).unwrap_or_default();
                let ids = part.get("special_tokens").and_then(|tokens| tokens.get(name)?.get("ids")?.as_array());
                let ids = ids.ok_or_else(|| problem("its template uses a token that it does not define"))?;
                let side = if texts == 0 { &mut before } else { &mut after };
                for id in ids {
                    side.push(token_id(Some(id))?);
                }
            } else if piece.pointer("/Sequence/id").and_then(Value::as_str) == Some("A") {
                texts += 1;
            } else {
                return Err(problem("its template holds an unknown piece"));
            }
        }
        if texts != 1 {
            return Err(problem("its template does not hold the text exactly once"));
        }
        self.before.splice(0..0, before);
        self.after.extend(after);
        Ok(())
    }
}

fn token_id(value: Option<&Value>) -> Result<u32, TextError> {
    let id = value.and_then(Value::as_u64).filter(|&id| id < MAX_TOKEN_IDS as u64);
    let id = id.and_then(|id| u32::try_from(id).ok());
    id.ok_or_else(|| problem("its post-processor names a token id that is none"))
}

fn problem(problem: &str) -> TextError {
    TextError::in_json(problem)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn templates_in_a_row_wrap_each_other() {
        let template = |single: Value| {
            let tokens = json!({"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}, "e": {"ids": [2, 3]}});
            json!({"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": tokens})
        };
        let text = json!({"Sequence": {"id": "A", "type_id": 0}});
        let special = |id: &str| json!({"SpecialToken": {"id": id, "type_id": 0}});
        let both = json!({"type": "Sequence", "processors": [
            {"type": "ByteLevel", "trim_offsets": false},
            template(json!([special("<s>"), text])),
            template(json!([special("e"), text, special("e")])),
        ]});
        let wrapping = Wrapping::from_post_processor(&both).unwrap();
        assert_eq!(wrapping, Wrapping { before: vec![2, 3, 1], after: vec![2, 3] });
        let roberta = json!({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]});
        let wrapping = Wrapping::from_post_processor(&roberta).unwrap();
        assert_eq!(wrapping, Wrapping { before: vec![0], after: vec![2] });
        for broken in [json!([]), json!([text, text]), json!([special("gone"), text]), json!("$A"), json!([7, text])] {
            assert!(Wrapping::from_post_processor(&template(broken)).is_err());
        }
    }
}
