package prometheus_test

import (
	"regexp"
	"slices"
	"testing"

	"attentive.internal/pkg/fault"
)

// TestRunbook: the README has a section on each alert, and says of each panel and
// each reason of a block what it is about; and of none that do not exist.
func TestRunbook(t *testing.T) {
	t.Parallel()
	readme := text(t, "../README.md")
	var rules struct {
		Groups []struct {
			Rules []struct{ Alert string }
		}
	}
	read(t, "rules.yml", &rules)
	var alerts, titles, reasons []string
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			if rule.Alert != "" {
				alerts = append(alerts, rule.Alert)
			}
		}
	}
	for _, p := range panels(t) {
		titles = append(titles, p.title)
	}
	for _, reason := range fault.BlockReasons() {
		reasons = append(reasons, string(reason))
	}
	for _, part := range []struct {
		name       string
		want       []string
		begin, end string // of the part of the README
		entry      string // what begins an entry
	}{
		{"alerts", alerts, "## Alerts", "## The broker", `(?m)^### (\w+)$`},
		{"panels", titles, "## The dashboards", "## Alerts", `(?m)^\| ([^|]+?) \| [^|]*\?`},
		{"reasons of blocks", reasons, "### RelayBlocked", "### RelayDeadLetters", "(?m)^\\| `([a-z_]+)` \\|"},
	} {
		t.Run(part.name, func(t *testing.T) {
			t.Parallel()
			section := regexp.MustCompile(`(?s)\n` + part.begin + `\n.*?\n` + part.end).FindString(readme)
			var got []string
			for _, found := range regexp.MustCompile(part.entry).FindAllStringSubmatch(section, -1) {
				got = append(got, found[1])
			}
			for _, name := range part.want {
				if !slices.Contains(got, name) {
					t.Errorf("deploy/README.md says nothing of %q", name)
				}
			}
			for _, name := range got {
				if !slices.Contains(part.want, name) {
					t.Errorf("deploy/README.md tells of %q, which does not exist", name)
				}
			}
		})
	}
}
