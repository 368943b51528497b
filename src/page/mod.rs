//! Reports as one self-contained page: the frame, the style and the plots that drill and incident share. Pure.

use serde_json::Value;

const UPLOT_JS: &str = include_str!("../../third_party/uplot/uPlot.iife.min.js");
const UPLOT_CSS: &str = include_str!("../../third_party/uplot/uPlot.min.css");
const UPLOT_LICENSE: &str = include_str!("../../third_party/uplot/LICENSE");
const PAGE_CSS: &str = include_str!("page.css");
const PLOTS_JS: &str = include_str!("plots.js");

/// What a page that may load files of its own, and nothing else, needs of the same: its name, its type, its bytes.
pub const FILES: &[(&str, &str, &str)] = &[
    ("uplot.css", "text/css; charset=utf-8", UPLOT_CSS),
    ("page.css", "text/css; charset=utf-8", PAGE_CSS),
    (
        "uplot.js",
        "text/javascript; charset=utf-8",
        concat!(
            "/*\n",
            include_str!("../../third_party/uplot/LICENSE"),
            "*/\n",
            include_str!("../../third_party/uplot/uPlot.iife.min.js")
        ),
    ),
    ("plots.js", "text/javascript; charset=utf-8", PLOTS_JS),
];

/// What goes into a page.
#[derive(Clone, Copy, Debug)]
pub struct Page<'a> {
    /// Shown in the window's title; plain text.
    pub title: &'a str,
    /// Markup: texts of others must have been [`escape`]d.
    pub body: &'a str,
    /// What the plots are drawn from: the script finds it as JSON in the element with this id.
    pub data: (&'a str, &'a Value),
    /// Draws, with `Plots` at hand.
    pub script: &'a str,
}

/// The page. Nothing in it is loaded from elsewhere, and it may load nothing.
pub fn document(page: &Page<'_>) -> String {
    let title = escape(page.title);
    // JSON inside a script: no text in it may end that.
    let (id, data) = (page.data.0, page.data.1.to_string().replace('<', "\\u003c"));
    let (body, script) = (page.body, page.script);
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">\
         <title>{title}</title><style>{UPLOT_CSS}{PAGE_CSS}</style></head><body>\n{body}\
         <script type=\"application/json\" id=\"{id}\">{data}</script>\n<script>/*\n{UPLOT_LICENSE}*/\n{UPLOT_JS}</script>\n\
         <script>{PLOTS_JS}</script>\n<script>{script}</script>\n</body></html>\n"
    )
}

/// A text as markup that shows it.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_become_markup() {
        assert_eq!(escape("<b>&\"</b>"), "&lt;b&gt;&amp;&quot;&lt;/b&gt;");
    }

    #[test]
    fn a_page_loads_nothing_and_its_data_ends_no_script() {
        let data = serde_json::json!({"text": "</script><b>"});
        let page = document(&Page { title: "<b>", body: "<p>x</p>", data: ("data", &data), script: "" });
        assert!(page.contains("<title>&lt;b&gt;</title>") && !page.contains("</script><b>"));
        assert!(!page.contains("src=") && !page.contains("@import") && !page.contains("<link"));
    }
}
