//! The name that somebody who mistyped probably meant.

/// The candidate closest to `name`, if it is close enough to be worth naming.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters wrong is still a typing error; more is another word.
    let distance_max = (name.chars().count() / 3).max(2);
    candidates
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(name, candidate), candidate))
        .filter(|(distance, candidate)| *distance <= distance_max && *distance < candidate.len())
        .min()
        .map(|(_, candidate)| candidate)
}

/// `; did you mean "x"?`, or nothing.
pub fn suggestion<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    nearest(name, candidates).map_or_else(String::new, |near| format!("; did you mean \"{near}\"?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_only_what_is_near() {
        let names = ["address", "weight", "zone"];
        assert_eq!(nearest("adress", names), Some("address"));
        assert_eq!(nearest("wieght", names), Some("weight"));
        assert_eq!(nearest("protocol", names), None);
        assert_eq!(suggestion("zon", names), "; did you mean \"zone\"?");
        assert_eq!(suggestion("xyz", []), "");
    }
}
