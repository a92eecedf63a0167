// Package kubernetes_test builds the example overlay as kubectl does, and holds what
// comes out against the types of the Kubernetes API and against the workers.
package kubernetes_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"attentive.internal/pkg/config"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/kustomize/api/krusty"
	"sigs.k8s.io/kustomize/kyaml/filesys"
	"sigs.k8s.io/yaml"
)

// installation is what the example makes, by name.
type installation struct {
	deployments map[string]appsv1.Deployment
	jobs        map[string]batchv1.Job
	services    map[string]corev1.Service
	accounts    map[string]corev1.ServiceAccount
	configMaps  map[string]corev1.ConfigMap
	namespaces  map[string]corev1.Namespace
	budgets     map[string]policyv1.PodDisruptionBudget
	networks    map[string]networkingv1.NetworkPolicy
	monitors    map[string]monitoringv1.ServiceMonitor
}

// decode reads an object of a known type; a field that the type does not have is
// an error.
func decode[T any](t *testing.T, name, text string, into *map[string]T) {
	t.Helper()
	var object T
	if err := yaml.UnmarshalStrict([]byte(text), &object); err != nil {
		t.Errorf("%s: %v", name, err)
	}
	if *into == nil {
		*into = make(map[string]T)
	}
	(*into)[name] = object
}

func build(t *testing.T) installation {
	t.Helper()
	made, err := krusty.MakeKustomizer(krusty.MakeDefaultOptions()).Run(filesys.MakeFsOnDisk(), "example")
	if err != nil {
		t.Fatal(err)
	}
	var i installation
	for _, r := range made.Resources() {
		text, err := r.AsYAML()
		if err != nil {
			t.Fatal(err)
		}
		name, body := r.GetName(), string(text)
		switch kind := r.GetGvk().String(); kind {
		case "Deployment.v1.apps":
			decode(t, name, body, &i.deployments)
		case "Job.v1.batch":
			decode(t, name, body, &i.jobs)
		case "Service.v1.[noGrp]":
			decode(t, name, body, &i.services)
		case "ServiceAccount.v1.[noGrp]":
			decode(t, name, body, &i.accounts)
		case "ConfigMap.v1.[noGrp]":
			decode(t, name, body, &i.configMaps)
		case "Namespace.v1.[noGrp]":
			decode(t, name, body, &i.namespaces)
		case "PodDisruptionBudget.v1.policy":
			decode(t, name, body, &i.budgets)
		case "NetworkPolicy.v1.networking.k8s.io":
			decode(t, name, body, &i.networks)
		case "ServiceMonitor.v1.monitoring.coreos.com":
			decode(t, name, body, &i.monitors)
		default:
			t.Errorf("%s is a %s, whose type is not known here", name, kind)
		}
		if r.GetNamespace() != "attentive-relay" && r.GetKind() != "Namespace" {
			t.Errorf("%s is in namespace %q", name, r.GetNamespace())
		}
	}
	return i
}

// selects reports whether the selector selects the labels.
func selects(t *testing.T, s *metav1.LabelSelector, l map[string]string) bool {
	t.Helper()
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		t.Fatal(err)
	}
	return !selector.Empty() && selector.Matches(labels.Set(l))
}

func TestDeployments(t *testing.T) {
	t.Parallel()
	i := build(t)
	if got := slices.Sorted(maps.Keys(i.deployments)); !slices.Equal(got, []string{"attributes-worker", "segment-worker"}) {
		t.Fatalf("deployments %v", got)
	}
	for name, d := range i.deployments {
		pods, other := d.Spec.Template, i.jobs["relay-streams"].Spec.Template
		if n := *d.Spec.Replicas; n < 2 {
			t.Errorf("%s: %d replicas", name, n)
		}
		if !selects(t, d.Spec.Selector, pods.Labels) || selects(t, d.Spec.Selector, other.Labels) {
			t.Errorf("%s selects %v", name, d.Spec.Selector)
		}
		for other, o := range i.deployments {
			if other != name && selects(t, d.Spec.Selector, o.Spec.Template.Labels) {
				t.Errorf("%s selects the pods of %s", name, other)
			}
		}
		for _, topology := range []string{corev1.LabelHostname, corev1.LabelTopologyZone} {
			if !slices.ContainsFunc(pods.Spec.TopologySpreadConstraints, func(c corev1.TopologySpreadConstraint) bool {
				return c.TopologyKey == topology && selects(t, c.LabelSelector, pods.Labels)
			}) {
				t.Errorf("%s is not spread over %s", name, topology)
			}
		}
		// Our own grace is 10 s, and what follows it takes at most twice the time-out
		// of a request.
		if grace := *pods.Spec.TerminationGracePeriodSeconds; grace < 30 {
			t.Errorf("%s: %d s to stop", name, grace)
		}
		c := pods.Spec.Containers[0]
		if c.ReadinessProbe.HTTPGet.Path != "/readyz" || c.LivenessProbe.HTTPGet.Path != "/livez" {
			t.Errorf("%s: probes %v and %v", name, c.ReadinessProbe, c.LivenessProbe)
		}
		if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() || !c.Resources.Limits.Cpu().IsZero() {
			t.Errorf("%s: resources %v; want a limit of memory and none of CPU", name, c.Resources)
		}
		if _, ok := i.accounts[pods.Spec.ServiceAccountName]; !ok {
			t.Errorf("%s: no service account %s", name, pods.Spec.ServiceAccountName)
		}
	}
}

// TestPods: all pods run as the restricted standard wants, and see files change.
func TestPods(t *testing.T) {
	t.Parallel()
	i := build(t)
	all := map[string]corev1.PodSpec{"relay-streams": i.jobs["relay-streams"].Spec.Template.Spec}
	for name, d := range i.deployments {
		all[name] = d.Spec.Template.Spec
	}
	secrets := make(map[string]string)
	for name, pod := range all {
		s, c := pod.SecurityContext, pod.Containers[0]
		if s == nil || !*s.RunAsNonRoot || *s.RunAsUser == 0 || s.SeccompProfile.Type != corev1.SeccompProfileTypeRuntimeDefault {
			t.Errorf("%s: security context %v", name, s)
		}
		own := c.SecurityContext
		if own == nil || *own.AllowPrivilegeEscalation || !*own.ReadOnlyRootFilesystem || !slices.Equal(own.Capabilities.Drop, []corev1.Capability{"ALL"}) {
			t.Errorf("%s: security context of the container %v", name, own)
		}
		if *pod.AutomountServiceAccountToken {
			t.Errorf("%s has a token of Kubernetes", name)
		}
		if !strings.Contains(c.Image, "registry.example.com/") || !strings.HasSuffix(c.Image, ":1.0.0") {
			t.Errorf("%s: image %s is not the overlay's", name, c.Image)
		}
		for _, m := range c.VolumeMounts {
			if m.SubPath != "" {
				t.Errorf("%s: %s is mounted by subPath and never changes", name, m.MountPath)
			}
		}
		for _, source := range pod.Volumes[0].Projected.Sources {
			if source.ConfigMap != nil {
				if _, ok := i.configMaps[source.ConfigMap.Name]; !ok {
					t.Errorf("%s: no config map %s", name, source.ConfigMap.Name)
				}
			}
			if source.Secret != nil && len(source.Secret.Items) > 0 {
				if other, taken := secrets[source.Secret.Name]; taken {
					t.Errorf("%s and %s are the same user of the broker", name, other)
				}
				secrets[source.Secret.Name] = name
			}
		}
	}
	if len(secrets) != 3 {
		t.Errorf("users of the broker: %v, want one for each", secrets)
	}
}

func TestEveryWorkerHasItsOwn(t *testing.T) {
	t.Parallel()
	i := build(t)
	for name, d := range i.deployments {
		pods := d.Spec.Template.Labels
		if b := i.budgets[name]; !selects(t, b.Spec.Selector, pods) || b.Spec.MaxUnavailable.IntValue() != 1 {
			t.Errorf("%s: disruption budget %v", name, b.Spec)
		}
		n := i.networks[name]
		if !selects(t, &n.Spec.PodSelector, pods) || len(n.Spec.PolicyTypes) != 2 {
			t.Errorf("%s: network policy %v", name, n.Spec)
		}
		var out []int
		for _, rule := range n.Spec.Egress {
			for _, p := range rule.Ports {
				out = append(out, p.Port.IntValue())
			}
		}
		want := map[string][]int{"segment-worker": {53, 53, 4222, 22}, "attributes-worker": {53, 53, 4222, 443}}[name]
		if !slices.Equal(out, want) {
			t.Errorf("%s may reach ports %v, want %v", name, out, want)
		}
		s := i.services[name]
		if !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(pods)) {
			t.Errorf("%s: service selects %v", name, s.Spec.Selector)
		}
		m := i.monitors["attentive-relay"]
		if !selects(t, &m.Spec.Selector, s.Labels) || m.Spec.Endpoints[0].Port != s.Spec.Ports[0].Name {
			t.Errorf("%s is not scraped", name)
		}
		if s.Labels[m.Spec.JobLabel] != "attentive-relay" {
			t.Errorf("%s is scraped as job %q", name, s.Labels[m.Spec.JobLabel])
		}
	}
}

// TestConfiguration loads the example's as the workers do, from a folder as the
// pods see it.
func TestConfiguration(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	files := map[string]string{"acme-sftp": "secret", "acme-api": "secret", "broker/user.nk": "seed", "broker/ca.pem": "certificate"}
	maps.Copy(files, build(t).configMaps["relay"].Data)
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, err := config.Load(filepath.Join(dir, "relay.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, w := range cfg.Warnings() {
		t.Errorf("warning: %s", w)
	}
	if cfg.Broker.ManageStreams {
		t.Error("the workers manage the streams, and so does the job")
	}
}

// TestRules: the alert rules become a PrometheusRule, all of them.
func TestRules(t *testing.T) {
	t.Parallel()
	text, err := exec.CommandContext(t.Context(), "./monitoring/prometheusrule").Output()
	if err != nil {
		t.Fatal(err)
	}
	var made monitoringv1.PrometheusRule
	if err := yaml.UnmarshalStrict(text, &made); err != nil {
		t.Fatal(err)
	}
	rules, err := os.ReadFile("../prometheus/rules.yml")
	if err != nil {
		t.Fatal(err)
	}
	var want struct {
		Groups []struct {
			Name  string
			Rules []struct{ Alert, Record, Expr string }
		}
	}
	if err := yaml.Unmarshal(rules, &want); err != nil {
		t.Fatal(err)
	}
	var got, all []string
	for _, g := range made.Spec.Groups {
		for _, r := range g.Rules {
			got = append(got, fmt.Sprint(g.Name, r.Alert, r.Record, r.Expr.String()))
		}
	}
	for _, g := range want.Groups {
		for _, r := range g.Rules {
			all = append(all, fmt.Sprint(g.Name, r.Alert, r.Record, r.Expr))
		}
	}
	if len(all) == 0 || !slices.Equal(got, all) {
		t.Errorf("rules %v, want %v", got, all)
	}
}
