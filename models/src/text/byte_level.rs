//! The printable alphabet in which byte-level BPE spells arbitrary bytes.

/// The byte that `c` stands for; `None` outside the alphabet.
///
/// # Source
/// GPT-2's table: printable Latin-1 stands for itself, the other 68 bytes follow from U+0100 in order.
pub(super) fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    if let Ok(byte) = u8::try_from(code) {
        return is_itself(byte).then_some(byte);
    }
    match code {
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// Appends the bytes that `piece` spells; `false` (and nothing appended) when a character is outside the alphabet.
pub(super) fn append_bytes(piece: &str, out: &mut Vec<u8>) -> bool {
    let start = out.len();
    for c in piece.chars() {
        let Some(byte) = byte_of(c) else {
            out.truncate(start);
            return false;
        };
        out.push(byte);
    }
    true
}

fn is_itself(byte: u8) -> bool {
    matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The character that stands for `byte`.
    fn char_of(byte: u8) -> char {
        if is_itself(byte) {
            return char::from(byte);
        }
        let rank = (0..byte).filter(|&other| !is_itself(other)).count();
        char::from_u32(0x100 + u32::try_from(rank).expect("at most 68 bytes are renamed"))
            .expect("U+0100 to U+0143 are characters")
    }

    #[test]
    fn every_byte_has_its_own_character_and_comes_back() {
        for byte in 0..=255u8 {
            assert_eq!(byte_of(char_of(byte)), Some(byte), "byte {byte:#x}");
        }
        assert_eq!(char_of(b' '), 'Ġ');
        assert_eq!(char_of(b'\n'), 'Ċ');
        assert_eq!(byte_of('漢'), None);
    }
}
