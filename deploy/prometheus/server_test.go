package prometheus_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"attentive.internal/pkg/peer"
	"github.com/google/go-cmp/cmp"
)

// server is a real Prometheus with the product's configuration and rules.
type server struct {
	t   *testing.T
	url string
}

// startServer starts it with the product's own files; only addresses and
// intervals differ.
func startServer(t *testing.T, dir string, a addresses) *server {
	t.Helper()
	program := peer.Need(t, "prometheus")
	config := text(t, "prometheus.yml")
	for _, change := range [][2]string{
		{"segment-worker:9464", a.SegmentOps},
		{"attributes-worker:9464", a.AttributesOps},
		{"scrape_interval: 15s", "scrape_interval: 200ms"},
		{"evaluation_interval: 15s", "evaluation_interval: 1s"},
	} {
		if strings.Count(config, change[0]) != 1 {
			t.Fatalf("prometheus.yml does not say %q once: this test has to be told", change[0])
		}
		config = strings.Replace(config, change[0], change[1], 1)
	}
	for name, content := range map[string]string{"prometheus.yml": config, "rules.yml": text(t, "rules.yml")} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := start(t, dir, program, "--config.file="+filepath.Join(dir, "prometheus.yml"),
		"--storage.tsdb.path="+filepath.Join(dir, "tsdb"), "--web.listen-address=127.0.0.1:0")
	s := &server{t: t}
	listening := regexp.MustCompile(`msg="Listening on" address=(\S+)`)
	await(t, "prometheus listens", func() error {
		found := listening.FindStringSubmatch(text(t, p.stderr))
		if found == nil {
			return errors.Join(errors.New("it does not say where it listens"), p.ended())
		}
		s.url = "http://" + found[1]
		return nil
	})
	return s
}

// get asks an endpoint of the API for its data.
func (s *server) get(path string, parameters url.Values, into any) error {
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodGet, s.url+"/api/v1/"+path+"?"+parameters.Encode(), nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := struct {
		Status, Error string
		Data          any
	}{Data: into}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return fmt.Errorf("status %d: %w", resp.StatusCode, err)
	}
	if answer.Status != "success" {
		return fmt.Errorf("status %d: %s", resp.StatusCode, answer.Error)
	}
	return nil
}

// sample is the value of one series now.
type sample struct {
	labels map[string]string
	value  float64
}

func (s sample) String() string {
	var labels []string
	for _, name := range slices.Sorted(maps.Keys(s.labels)) {
		labels = append(labels, name+"="+s.labels[name])
	}
	return fmt.Sprintf("{%s} %.4g", strings.Join(labels, " "), s.value)
}

// query returns the series that expr has now, but for those without a number: a
// quantile of nothing is a series that shows nothing.
func (s *server) query(expr string) ([]sample, error) {
	var data struct {
		ResultType string
		Result     []struct {
			Metric map[string]string
			Value  [2]any
		}
	}
	if err := s.get("query", url.Values{"query": {expr}}, &data); err != nil {
		return nil, fmt.Errorf("query %s: %w", expr, err)
	}
	if data.ResultType != "vector" {
		return nil, fmt.Errorf("query %s: is a %s, which no panel shows", expr, data.ResultType)
	}
	var samples []sample
	for _, series := range data.Result {
		number, _ := series.Value[1].(string)
		value, err := strconv.ParseFloat(number, 64)
		if err != nil {
			return nil, fmt.Errorf("query %s: value %v: %w", expr, series.Value, err)
		}
		if !math.IsNaN(value) {
			samples = append(samples, sample{series.Metric, value})
		}
	}
	return samples, nil
}

// expect waits until expr has exactly n series.
func (s *server) expect(n int, expr string) {
	s.t.Helper()
	await(s.t, expr, func() error {
		samples, err := s.query(expr)
		if err == nil && len(samples) != n {
			err = fmt.Errorf("%d series, want %d: %v", len(samples), n, samples)
		}
		return err
	})
}

// alerted waits until exactly these alerts are pending or firing: name, then kind
// and destination where the alert has them.
func (s *server) alerted(want ...string) {
	s.t.Helper()
	await(s.t, "alerts", func() error {
		var data struct {
			Alerts []struct{ Labels map[string]string }
		}
		if err := s.get("alerts", nil, &data); err != nil {
			return err
		}
		var got []string
		for _, a := range data.Alerts {
			got = append(got, strings.Join(strings.Fields(a.Labels["alertname"]+" "+a.Labels["kind"]+" "+a.Labels["destination"]), " "))
		}
		slices.Sort(got)
		if diff := cmp.Diff(want, got); diff != "" {
			return fmt.Errorf("(-want +got):\n%s", diff)
		}
		return nil
	})
}

// rule is one rule as the server has it.
type rule struct {
	Name, Type, Query, Health, LastError string
}

func (s *server) rules() ([]rule, error) {
	var data struct {
		Groups []struct{ Rules []rule }
	}
	if err := s.get("rules", nil, &data); err != nil {
		return nil, err
	}
	var list []rule
	for _, g := range data.Groups {
		list = append(list, g.Rules...)
	}
	return list, nil
}

// exposed returns the type of each metric that the target at address exposes.
func (s *server) exposed(address string) (map[string]string, error) {
	var data []struct{ Metric, Type string }
	if err := s.get("targets/metadata", url.Values{"match_target": {fmt.Sprintf("{instance=%q}", address)}}, &data); err != nil {
		return nil, err
	}
	types := make(map[string]string)
	for _, m := range data {
		types[m.Metric] = m.Type
	}
	return types, nil
}
