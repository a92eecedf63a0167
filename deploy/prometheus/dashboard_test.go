package prometheus_test

import (
	"encoding/json"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// dashboard is what Grafana reads of a dashboard, as far as ours go.
type dashboard struct {
	UID, Title    string
	SchemaVersion int
	Editable      bool
	Templating    struct{ List []struct{ Name, Type string } }
	Panels        []struct {
		ID                       int
		Type, Title, Description string
		Datasource               struct{ Type, UID string }
		GridPos                  struct{ X, Y, W, H int }
		FieldConfig              struct{ Defaults struct{ Unit string } }
		Targets                  []struct{ RefID, Expr, LegendFormat string }
	}
}

// has reports whether there is a variable of a name.
func (d dashboard) has(variable string) bool {
	for _, v := range d.Templating.List {
		if v.Name == variable {
			return true
		}
	}
	return false
}

// TestDashboards checks what Grafana would not tell of: it shows a wrong dashboard
// half, or not at all.
func TestDashboards(t *testing.T) {
	t.Parallel()
	var sources struct{ Datasources []struct{ UID, Type string } }
	read(t, "../grafana/provisioning/datasources/prometheus.yml", &sources)
	files, err := filepath.Glob("../grafana/dashboards/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no dashboards: %v", err)
	}
	seen := make(map[string]string)
	for _, file := range files {
		var d dashboard
		if err := json.Unmarshal([]byte(text(t, file)), &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if d.UID == "" || seen[d.UID] != "" || d.Title == "" || d.SchemaVersion == 0 || d.Editable {
			t.Errorf("%s: uid %q (also of %q), title %q, schema %d, editable %v", file, d.UID, seen[d.UID], d.Title, d.SchemaVersion, d.Editable)
		}
		seen[d.UID] = file
		taken, ids := make(map[[2]int]string), make(map[int]bool)
		for _, p := range d.Panels {
			switch {
			case p.ID == 0 || ids[p.ID]:
				t.Errorf("%s: panel %q has the id %d of another one", file, p.Title, p.ID)
			case p.Description == "" || p.FieldConfig.Defaults.Unit == "":
				t.Errorf("%s: panel %q has no description or no unit", file, p.Title)
			case !slices.Contains([]string{"stat", "timeseries", "table", "bargauge"}, p.Type):
				t.Errorf("%s: panel %q is of type %q", file, p.Title, p.Type)
			case p.Datasource.UID != sources.Datasources[0].UID || p.Datasource.Type != sources.Datasources[0].Type:
				t.Errorf("%s: panel %q asks %+v, which is not provisioned", file, p.Title, p.Datasource)
			case p.GridPos.X+p.GridPos.W > 24 || p.GridPos.W < 1 || p.GridPos.H < 1:
				t.Errorf("%s: panel %q is not on the grid: %+v", file, p.Title, p.GridPos)
			}
			ids[p.ID] = true
			for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
				for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
					if other := taken[[2]int{x, y}]; other != "" {
						t.Fatalf("%s: panels %q and %q lie on each other", file, p.Title, other)
					}
					taken[[2]int{x, y}] = p.Title
				}
			}
			for _, target := range p.Targets {
				if p.Type != "table" && target.LegendFormat == "" || target.RefID == "" {
					t.Errorf("%s: panel %q has a query without a legend", file, p.Title)
				}
				if strings.Contains(target.Expr, "$destination") && !d.has("destination") {
					t.Errorf("%s: panel %q uses a variable that the dashboard lacks", file, p.Title)
				}
			}
		}
	}
}
