// Package prometheus_test runs Prometheus' own tool over the configuration, the
// alert rules and their tests, and Prometheus over a real run that every query of
// the dashboards has to show.
package prometheus_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"attentive.internal/pkg/peer"
	"go.yaml.in/yaml/v4"
)

// promtool runs it with args and fails the test when it finds a fault.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), peer.Need(t, "promtool"), args...).CombinedOutput()
	if err != nil {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

func TestConfiguration(t *testing.T) {
	t.Parallel()
	promtool(t, "check", "config", "prometheus.yml")
}

func TestAlerts(t *testing.T) {
	t.Parallel()
	promtool(t, "test", "rules", "rules_test.yml")
}

// TestAlertsAreTested: each alert is shown to fire and not to fire, and says what
// to look at.
func TestAlertsAreTested(t *testing.T) {
	t.Parallel()
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert               string
				Labels, Annotations map[string]string
			}
		}
	}
	var tests struct {
		Tests []struct {
			Cases []struct {
				Alert string `yaml:"alertname"`
				Want  []any  `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	read(t, "rules.yml", &rules)
	read(t, "rules_test.yml", &tests)
	fires, silent := make(map[string]bool), make(map[string]bool)
	for _, test := range tests.Tests {
		for _, c := range test.Cases {
			fires[c.Alert] = fires[c.Alert] || len(c.Want) > 0
			silent[c.Alert] = silent[c.Alert] || len(c.Want) == 0
		}
	}
	alerts := 0
	for _, group := range rules.Groups {
		for _, rule := range group.Rules {
			if rule.Alert == "" {
				continue // a record: alerts are tested with those they use
			}
			alerts++
			if !fires[rule.Alert] || !silent[rule.Alert] {
				t.Errorf("%s: no test shows that it fires, or none that it does not", rule.Alert)
			}
			if rule.Labels["severity"] == "" || rule.Annotations["summary"] == "" || rule.Annotations["runbook"] == "" {
				t.Errorf("%s: severity, summary or runbook is missing", rule.Alert)
			}
			if got, want := rule.Annotations["runbook_url"], "deploy/README.md#"+strings.ToLower(rule.Alert); got != want {
				t.Errorf("%s: runbook_url = %q, want %q", rule.Alert, got, want)
			}
		}
	}
	if alerts == 0 {
		t.Error("no alerts found in rules.yml")
	}
}

// TestDashboardQueries lets promtool parse each query as if it were a rule.
func TestDashboardQueries(t *testing.T) {
	t.Parallel()
	var rules strings.Builder
	rules.WriteString("groups:\n- name: dashboards\n  rules:\n")
	for i, p := range panels(t) {
		if len(p.queries) == 0 {
			t.Errorf("panel %q asks for nothing", p.title)
		}
		for j, query := range p.queries {
			expr, err := json.Marshal(choose(query, ".*"))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(&rules, "  - {record: \"panel:%d:%d\", expr: %s}\n", i, j, expr)
		}
	}
	file := filepath.Join(t.TempDir(), "dashboards.yml")
	if err := os.WriteFile(file, []byte(rules.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	promtool(t, "check", "rules", file)
}

// panel is one panel of a dashboard.
type panel struct {
	title   string
	queries []string
}

// choose returns a query with the dashboard's variable replaced as Grafana does.
func choose(query, destination string) string {
	return strings.ReplaceAll(query, "$destination", destination)
}

// panels returns those of all dashboards.
func panels(t *testing.T) (list []panel) {
	t.Helper()
	files, err := filepath.Glob("../grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	for _, file := range files {
		var dashboard struct {
			Panels []struct {
				Title   string
				Targets []struct{ Expr string }
			}
		}
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(text, &dashboard); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		for _, found := range dashboard.Panels {
			p := panel{title: found.Title}
			for _, target := range found.Targets {
				p.queries = append(p.queries, target.Expr)
			}
			list = append(list, p)
		}
	}
	return list
}

func read(t *testing.T, file string, into any) {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(text, into); err != nil {
		t.Fatalf("%s: %v", file, err)
	}
}
